//! Steps that are not made, since a loss or a gradient was not finite.

use crate::checkpoint::Position;
use crate::error::ModelError;
use crate::metrics::MetricsLog;

/// Skipped steps in a row that end a run: nothing will become finite again.
const MAX_IN_A_ROW: u32 = 25;

/// Ends a run of which every step is skipped.
#[derive(Default)]
pub(crate) struct Skips {
    in_a_row: u32,
}

impl Skips {
    /// A step was made: no row of skipped ones goes on.
    pub(crate) fn end(&mut self) {
        self.in_a_row = 0;
    }

    /// The step that `position` stands at was not made. Returns those of the whole run.
    ///
    /// # Errors
    /// [`ModelError::Diverged`], and what the log cannot write.
    pub(crate) fn count(
        &mut self,
        position: &mut Position,
        log: Option<&mut MetricsLog>,
    ) -> Result<u32, ModelError> {
        self.in_a_row += 1;
        position.skipped_steps += 1;
        let (step, total) = (position.step, position.skipped_steps);
        tracing::warn!(
            step,
            total,
            "a loss or gradient is not finite: step skipped"
        );
        if let Some(log) = log {
            log.skipped(step, total)?;
        }
        if self.in_a_row >= MAX_IN_A_ROW {
            return Err(ModelError::Diverged {
                in_a_row: self.in_a_row,
                step,
            });
        }
        Ok(total)
    }
}
