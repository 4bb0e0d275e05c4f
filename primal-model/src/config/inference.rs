//! `[inference]`: how a model is run.

use primal_kernels::CacheKind;
use serde::{Deserialize, Serialize};

/// How a model is run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InferenceConfig {
    /// How keys and values of past tokens are kept.
    pub kv_cache: KvCacheKind,
}

/// How keys and values of past tokens are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvCacheKind {
    /// In two bytes.
    #[default]
    F16,
    /// In one byte, with a scale a token and head.
    Int8,
    /// In four bytes.
    F32,
}

impl From<KvCacheKind> for CacheKind {
    fn from(kind: KvCacheKind) -> CacheKind {
        match kind {
            KvCacheKind::F16 => CacheKind::F16,
            KvCacheKind::Int8 => CacheKind::Int8,
            KvCacheKind::F32 => CacheKind::F32,
        }
    }
}
