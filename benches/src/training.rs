//! The training loop as a workload.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Result;
use primal_model::config::Config;
use primal_model::train::{Event, Trainer};

/// Distinct characters of the made-up text: as many as tinyshakespeare has.
const CHARACTERS: usize = 65;

/// Steps before the first that counts: buffers grow and caches fill.
const WARM_UP_STEPS: u64 = 2;

/// Makes `steps` steps of a preset on made-up text, after a warm-up, and returns the time that
/// the steps took, evaluation and checkpoint left out.
///
/// # Errors
/// An unknown preset; a temporary folder that cannot be written.
pub fn training_steps(preset: &str, threads: usize, steps: u64) -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let text = folder.path().join("text.txt");
    let mut config = Config::preset(preset)?;
    let character =
        |index: usize| char::from(b'!' + ((7919 * index + index / CHARACTERS) % CHARACTERS) as u8);
    let length = 64 * config.model.context + CHARACTERS;
    std::fs::write(&text, (0..length).map(character).collect::<String>())?;
    config.data.train = vec![text.clone()];
    config.data.val = vec![text];
    config.train.run = folder.path().join("run");
    config.train.threads = threads;
    config.train.eval_every = 0;
    config.train.save_every = 0;
    let last = WARM_UP_STEPS + steps;
    // One more than are made, so that the run is stopped and not finished with an evaluation.
    config.train.steps = u32::try_from(last)? + 1;
    let step_tokens = (config.train.batch * config.model.context) as f64;
    let mut seconds = 0.0;
    Trainer::new(config)?.run(&mut |event| {
        let Event::Step(row) = event else {
            return ControlFlow::Continue(());
        };
        if u64::from(row.step) > WARM_UP_STEPS {
            seconds += step_tokens / row.tokens_per_s;
        }
        if u64::from(row.step) < last {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_take_time() {
        assert!(training_steps("shakespeare-char", 1, 1).unwrap() > Duration::ZERO);
    }
}
