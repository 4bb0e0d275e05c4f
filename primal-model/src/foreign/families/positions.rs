//! Rotary positions: their base, how they are stretched, and what of a head they turn.

use super::{Described, cut_to_original};
use crate::ModelError;
use crate::config::{ModelConfig, RopeScaling};
use crate::foreign::keys::{GgufKeys, JsonKeys, Keys};

/// Kinds of scaling by lists of factors; the second is an older name.
const LONG: [&str; 2] = ["longrope", "su"];

/// The object of a `config.json` with all of it, or with the scaling alone in older files.
fn object<'a>(keys: &JsonKeys<'a>) -> Option<JsonKeys<'a>> {
    keys.object("rope_parameters")
        .or_else(|| keys.object("rope_scaling"))
}

/// The share of a head that is turned.
pub(super) fn turned_share(keys: &JsonKeys<'_>) -> Result<f64, ModelError> {
    let inner = object(keys);
    let inner = inner.map(|it| it.number("partial_rotary_factor"));
    let share = match inner.transpose()?.flatten() {
        Some(share) => share,
        None => keys.number("partial_rotary_factor")?.unwrap_or(1.0),
    };
    if share > 0.0 && share <= 1.0 {
        return Ok(share);
    }
    let reason = format!("is {share}, expected a share of a head");
    Err(keys.error("partial_rotary_factor", reason))
}

fn kind<'a>(scaling: &JsonKeys<'a>) -> &'a str {
    let kind = scaling.text("rope_type").or_else(|| scaling.text("type"));
    match kind.unwrap_or("default") {
        // The first files of Phi-3 call it so.
        "yarn" if scaling.list("short_factor").is_some() => LONG[0],
        kind => kind,
    }
}

/// Reads base and scaling into `model`, whose context is read already.
pub(super) fn json(keys: &JsonKeys<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    let scaling = object(keys);
    let inner = scaling.as_ref().map(|it| it.float("rope_theta"));
    let theta = match inner.transpose()?.flatten() {
        Some(theta) => Some(theta),
        None => keys.float("rope_theta")?,
    };
    model.rope_theta = theta.unwrap_or(10_000.0);
    match scaling {
        Some(scaling) => scaling_json(keys, &scaling, model),
        None => Ok(()),
    }
}

fn scaling_json(
    keys: &JsonKeys<'_>,
    scaling: &JsonKeys<'_>,
    model: &mut ModelConfig,
) -> Result<(), ModelError> {
    model.rope_scaling = match kind(scaling) {
        // Lists of factors are read when the share of a head that is turned is known.
        "default" | "longrope" | "su" => return Ok(()),
        "linear" => RopeScaling::Linear,
        "llama3" => RopeScaling::Llama3,
        "yarn" => RopeScaling::Yarn,
        other => {
            let reason =
                format!("is {other}; this build has default, linear, llama3, yarn, longrope");
            return Err(keys.error("rope_scaling", reason));
        }
    };
    model.rope_factor = scaling.float("factor")?.unwrap_or(1.0);
    model.rope_original_context = original_context(keys, scaling)?.unwrap_or(model.context);
    model.rope_low_freq_factor = scaling.float("low_freq_factor")?.unwrap_or(1.0);
    model.rope_high_freq_factor = scaling.float("high_freq_factor")?.unwrap_or(4.0);
    model.rope_beta_fast = scaling.float("beta_fast")?.unwrap_or(32.0);
    model.rope_beta_slow = scaling.float("beta_slow")?.unwrap_or(1.0);
    model.rope_truncate = scaling.flag("truncate", true);
    model.rope_attention_factor = if model.rope_scaling == RopeScaling::Yarn {
        attention_factor(scaling)?.unwrap_or(0.0)
    } else {
        0.0
    };
    Ok(())
}

/// The context that a model was first trained with: inside the scaling, or beside it.
fn original_context(
    keys: &JsonKeys<'_>,
    scaling: &JsonKeys<'_>,
) -> Result<Option<usize>, ModelError> {
    const KEY: &str = "original_max_position_embeddings";
    match scaling.optional_size(KEY)? {
        Some(context) => Ok(Some(context)),
        None => keys.optional_size(KEY),
    }
}

/// What scaling `yarn` multiplies by, where the file says so itself.
fn attention_factor(scaling: &JsonKeys<'_>) -> Result<Option<f32>, ModelError> {
    if let Some(factor) = scaling.float("attention_factor")? {
        return Ok(Some(factor));
    }
    // As DeepSeek has it: a ratio of two sharpnesses.
    let pair = (scaling.number("mscale")?, scaling.number("mscale_all_dim")?);
    let (Some(scale), Some(of_all)) = pair else {
        return Ok(None);
    };
    if scale == 0.0 || of_all == 0.0 {
        return Ok(None);
    }
    let log = scaling.number("factor")?.unwrap_or(1.0).max(1.0).ln();
    let sharpness = |scale: f64| 0.1 * scale * log + 1.0;
    Ok(Some((sharpness(scale) / sharpness(of_all)) as f32))
}

/// Positions that are stretched by one list of factors up to the context that the model was first
/// trained with, and by another beyond it: this build has the first, and ends the context there
/// where the other differs.
pub(super) fn long_json(keys: &JsonKeys<'_>, described: &mut Described) -> Result<(), ModelError> {
    let scaling = object(keys).filter(|it| LONG.contains(&kind(it)));
    let Some(scaling) = scaling else {
        return Ok(());
    };
    let model = &mut described.model;
    let original = original_context(keys, &scaling)?.unwrap_or(model.context);
    model.rope_attention_factor = match scaling.float("attention_factor")? {
        Some(factor) => factor,
        None => {
            let given = scaling.number("factor")?;
            let factor = given.unwrap_or(model.context as f64 / original as f64);
            long_sharpness(factor, original)
        }
    };
    let pairs = model.resolved_rope_dim() / 2;
    let factors = |key: &str| {
        let list = scaling.list(key).unwrap_or_default();
        let numbers: Option<Vec<f32>> = list
            .iter()
            .map(|number| number.as_f64().map(|number| number as f32))
            .collect();
        numbers
            .filter(|numbers| numbers.len() == pairs)
            .ok_or_else(|| {
                let reason = format!("is no list of a number for each of {pairs} pairs of a head");
                scaling.error(key, reason)
            })
    };
    let (short, long) = (factors("short_factor")?, factors("long_factor")?);
    if short != long {
        cut_to_original(described, original);
    }
    if short.iter().any(|factor| *factor != 1.0) {
        described.model.rope_factors = short;
    }
    Ok(())
}

/// What `transformers` multiplies by where the file does not say it.
fn long_sharpness(factor: f64, original: usize) -> f32 {
    if factor <= 1.0 {
        return 1.0;
    }
    (1.0 + factor.ln() / (original.max(2) as f64).ln()).sqrt() as f32
}

/// Reads base and scaling of a GGUF file into `model`, whose context is read already.
pub(super) fn gguf(keys: &GgufKeys<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    model.rope_theta = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
    let head_dim = model.resolved_head_dim();
    let turned = keys.optional_size("rope.dimension_count")?;
    if let Some(turned) = turned.filter(|turned| *turned != head_dim) {
        if keys.architecture != "phi3" {
            let reason =
                format!("is {turned} of {head_dim}: this build turns heads in part for phi3 alone");
            return Err(keys.error("rope.dimension_count", reason));
        }
        model.rope_dim = turned;
    }
    let factor = keys.float("rope.scaling.factor")?;
    let old_linear = keys.float("rope.scale_linear")?;
    let original = match keys.optional_size("rope.scaling.original_context_length")? {
        Some(original) => Some(original),
        None => keys.optional_size("rope.scaling.orig_ctx_len")?,
    };
    let kind = match keys.text("rope.scaling.type") {
        Some(kind) => kind,
        None if old_linear.or(factor).is_some_and(|factor| factor != 1.0) => "linear",
        None => "none",
    };
    model.rope_scaling = match kind {
        "none" | "longrope" => RopeScaling::None,
        "linear" => RopeScaling::Linear,
        "yarn" => RopeScaling::Yarn,
        other => {
            let reason = format!("is {other}, which is unknown");
            return Err(keys.error("rope.scaling.type", reason));
        }
    };
    if model.rope_scaling != RopeScaling::None {
        model.rope_factor = factor.or(old_linear).unwrap_or(1.0);
        model.rope_original_context = original.unwrap_or(model.context);
    }
    let yarn = model.rope_scaling == RopeScaling::Yarn;
    let (fast, slow) = (
        keys.float("rope.scaling.yarn_beta_fast")?,
        keys.float("rope.scaling.yarn_beta_slow")?,
    );
    if yarn {
        model.rope_beta_fast = fast.unwrap_or(32.0);
        model.rope_beta_slow = slow.unwrap_or(1.0);
    }
    // -1 stands for what the kind of scaling says: all of yarn, or none of it.
    if keys.number("rope.scaling.yarn_ext_factor")? != Some(-1.0) {
        keys.only("rope.scaling.yarn_ext_factor", f64::from(u8::from(yarn)))?;
    }
    keys.only("rope.scaling.yarn_log_multiplier", 0.0)?;
    for key in ["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"] {
        if let Some(factor) = keys.float(key)?.filter(|factor| *factor != 1.0) {
            if !(factor.is_finite() && factor > 0.0) {
                return Err(keys.error(key, format!("is {factor}, which no model has")));
            }
            // What yarn multiplies by comes on top of it.
            model.rope_attention_factor = factor * crate::rope::sharpness(model);
        }
    }
    Ok(())
}
