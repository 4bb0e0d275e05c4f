//! Every tier against a plain decoder.
