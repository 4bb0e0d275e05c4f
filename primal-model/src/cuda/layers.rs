//! What training and generation on a GPU share: norms and the angles of rotary positions.

use primal_kernels::NormKind;
use primal_kernels::cuda::{Buffer, CudaError, Device, NormSizes};
use primal_optim::FloatVector;

use super::Part;
use crate::layers::Norm;
use crate::rope::Rope;

/// A norm, and where its weight and bias lie among the float parameters.
pub(super) struct NormAt {
    eps: f32,
    rms: bool,
    pub(super) weight: Part,
    pub(super) bias: Option<Part>,
}

impl NormAt {
    /// The norm whose parameters lie where `place` says.
    pub(super) fn new(norm: &Norm, place: &mut dyn FnMut(&FloatVector) -> Part) -> Self {
        NormAt {
            eps: norm.eps,
            rms: norm.kind == NormKind::Rms,
            weight: place(&norm.weight),
            bias: norm.bias.as_ref().map(place),
        }
    }

    /// Of `n` rows of `width`.
    pub(super) fn sizes(&self, n: usize, width: usize) -> NormSizes {
        NormSizes {
            n,
            width,
            eps: self.eps,
            rms: self.rms,
        }
    }
}

/// Cosines and sines of rotary positions, (T, D / 2) each.
pub(super) type Angles = (Buffer<f32>, Buffer<f32>);

pub(super) fn upload_angles(
    device: &Device,
    rope: Option<&Rope>,
) -> Result<Option<Angles>, CudaError> {
    let Some((cos, sin)) = rope.map(Rope::angles) else {
        return Ok(None);
    };
    let upload = |angles: &[f32]| Buffer::from_slice(device, angles, "angles");
    Ok(Some((upload(cos)?, upload(sin)?)))
}
