//! Every tier against a plain rule.
