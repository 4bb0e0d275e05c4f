//! How often each instruction of a kernel was executed: what launches count, and what tests cover.

use std::ops::AddAssign;

use crate::parse::Kernel;

/// Executions of the instructions of one kernel, in the order of [`Kernel::lines`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    pub(crate) executed: Vec<u64>,
    pub(crate) passed_over: Vec<u64>,
}

impl Profile {
    pub(crate) fn new(kernel: &Kernel) -> Self {
        Profile {
            executed: vec![0; kernel.code.len()],
            passed_over: vec![0; kernel.code.len()],
        }
    }

    /// Threads that executed each instruction.
    pub fn executed(&self) -> &[u64] {
        &self.executed
    }

    /// Threads whose guard held it back: of a branch, those that did not take it.
    pub fn passed_over(&self) -> &[u64] {
        &self.passed_over
    }
}

impl AddAssign<&Profile> for Profile {
    /// Adds another profile of the same kernel; to an empty one, of any.
    fn add_assign(&mut self, other: &Profile) {
        for (to, from) in [
            (&mut self.executed, &other.executed),
            (&mut self.passed_over, &other.passed_over),
        ] {
            to.resize(from.len(), 0);
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }
}
