//! Which instruction set the kernels use: found at run time, carried as a token.

use crate::error::KernelError;
#[cfg(target_arch = "x86_64")]
use crate::lanes::{avx2::Avx2, avx512::Avx512};

/// The environment variable that forces a tier.
pub(crate) const TIER_VARIABLE: &str = "PRIMAL_ISA";

/// A level of vector instructions. All give bit-equal results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Portable arrays: the specification.
    Scalar,
    /// AVX2, FMA and F16C: two registers of eight lanes.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: one register of sixteen lanes.
    Avx512,
}

impl Tier {
    /// The name that `PRIMAL_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Scalar => "scalar",
            Tier::Avx2 => "avx2",
            Tier::Avx512 => "avx512",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn detected(self) -> bool {
        match self {
            Tier::Scalar => true,
            Tier::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Tier::Avx512 => {
                Tier::Avx2.detected()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detected(self) -> bool {
        self == Tier::Scalar
    }
}

/// Instructions beyond a tier's own that integer kernels use where they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Extras {
    /// Dot products of four bytes and of two words: AVX-VNNI in the tier `avx2`, AVX-512 VNNI in `avx512`.
    pub vnni: bool,
}

impl Extras {
    const NONE: Extras = Extras { vnni: false };

    #[cfg(target_arch = "x86_64")]
    fn detected(tier: Tier) -> Extras {
        match tier {
            Tier::Scalar => Extras::NONE,
            Tier::Avx2 => Extras {
                vnni: is_x86_feature_detected!("avxvnni"),
            },
            Tier::Avx512 => Extras {
                vnni: is_x86_feature_detected!("avx512vnni"),
            },
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detected(_tier: Tier) -> Extras {
        Extras::NONE
    }
}

/// Proof that the CPU has a tier: kernels that take it are safe to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa {
    // Invariant: `tier.detected()` was true, and every flag of `extras` was detected with it.
    tier: Tier,
    extras: Extras,
}

impl Isa {
    /// The widest tier of this CPU.
    pub fn best() -> Isa {
        let tier = [Tier::Avx512, Tier::Avx2]
            .into_iter()
            .find(|tier| tier.detected())
            .unwrap_or(Tier::Scalar);
        Isa {
            tier,
            extras: Extras::detected(tier),
        }
    }

    /// The tier that `PRIMAL_ISA` names (`scalar`, `avx2`, `avx512` or `neon`; `avx2-plain` and
    /// `avx512-plain` leave out [`Extras`]), or [`Isa::best`] where the variable is unset or
    /// empty.
    ///
    /// # Errors
    /// An unknown name, or a tier that this CPU does not have.
    pub fn from_env() -> Result<Isa, KernelError> {
        match std::env::var_os(TIER_VARIABLE) {
            Some(name) if !name.is_empty() => Isa::by_name(&name.to_string_lossy()),
            _ => Ok(Isa::best()),
        }
    }

    /// The tier of that name.
    ///
    /// # Errors
    /// An unknown name, or a tier that this CPU does not have.
    pub fn by_name(name: &str) -> Result<Isa, KernelError> {
        match name {
            "scalar" => Isa::new(Tier::Scalar),
            "avx2" => Isa::new(Tier::Avx2),
            "avx512" => Isa::new(Tier::Avx512),
            "avx2-plain" => Isa::new(Tier::Avx2).map(Isa::plain),
            "avx512-plain" => Isa::new(Tier::Avx512).map(Isa::plain),
            // A tier of the design that this build has no code for.
            "neon" => Err(KernelError::UnavailableTier { name: "neon" }),
            _ => Err(KernelError::UnknownTier {
                name: name.to_owned(),
            }),
        }
    }

    /// A token for `tier`.
    ///
    /// # Errors
    /// [`KernelError::UnavailableTier`] where the CPU does not have it.
    pub fn new(tier: Tier) -> Result<Isa, KernelError> {
        if tier.detected() {
            let extras = Extras::detected(tier);
            Ok(Isa { tier, extras })
        } else {
            Err(KernelError::UnavailableTier { name: tier.name() })
        }
    }

    /// Every tier of this CPU, scalar first.
    pub fn available() -> Vec<Isa> {
        [Tier::Scalar, Tier::Avx2, Tier::Avx512]
            .into_iter()
            .filter_map(|tier| Isa::new(tier).ok())
            .collect()
    }

    /// Every tier of this CPU with and without its [`Extras`], scalar first: what the tests of
    /// integer kernels run on.
    pub fn variants() -> Vec<Isa> {
        let mut list = Vec::new();
        for isa in Isa::available() {
            if isa.extras != Extras::NONE {
                list.push(isa.plain());
            }
            list.push(isa);
        }
        list
    }

    /// The same tier without its [`Extras`].
    pub fn plain(self) -> Isa {
        Isa {
            tier: self.tier,
            extras: Extras::NONE,
        }
    }

    /// What the CPU has beyond the tier.
    pub fn extras(self) -> Extras {
        self.extras
    }

    /// The tier's name, as `PRIMAL_ISA` takes it.
    pub fn name(self) -> &'static str {
        self.tier.name()
    }

    /// The tier.
    pub fn tier(self) -> Tier {
        self.tier
    }
}

/// Runs `body(lanes, arguments..)` with the lanes of `isa`, inside a function that has the
/// tier's target features. `body` must be generic over [`crate::lanes::Lanes`] and
/// `#[inline(always)]`, as must everything below it that touches lanes: what is not inlined
/// is compiled without the features and calls every intrinsic through a function.
macro_rules! dispatch {
    ($isa:expr, $body:ident $(::<$($generic:tt),+>)? ($($argument:expr),* $(,)?)) => {
        match $isa.tier() {
            $crate::isa::Tier::Scalar => {
                $body $(::<_, $($generic),+>)? ($crate::lanes::scalar::Scalar, $($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Tier::Avx2 => $crate::isa::enter_avx2(
                $isa,
                #[inline(always)]
                |lanes| $body $(::<_, $($generic),+>)? (lanes, $($argument),*),
            ),
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Tier::Avx512 => $crate::isa::enter_avx512(
                $isa,
                #[inline(always)]
                |lanes| $body $(::<_, $($generic),+>)? (lanes, $($argument),*),
            ),
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("no token exists for a tier of another architecture"),
        }
    };
}
pub(crate) use dispatch;

/// Calls `body` with AVX2, FMA and F16C enabled. For [`dispatch!`] alone.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn enter_avx2<R>(isa: Isa, body: impl FnOnce(Avx2) -> R) -> R {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn enter<R>(body: impl FnOnce(Avx2) -> R, lanes: Avx2) -> R {
        body(lanes)
    }
    debug_assert_eq!(isa.tier, Tier::Avx2);
    // SAFETY: an `Isa` of this tier exists only where the features were detected.
    unsafe { enter(body, Avx2::new_unchecked()) }
}

/// Calls `body` with AVX-512 F, BW, DQ and VL enabled. For [`dispatch!`] alone.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn enter_avx512<R>(isa: Isa, body: impl FnOnce(Avx512) -> R) -> R {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    fn enter<R>(body: impl FnOnce(Avx512) -> R, lanes: Avx512) -> R {
        body(lanes)
    }
    debug_assert_eq!(isa.tier, Tier::Avx512);
    // SAFETY: an `Isa` of this tier exists only where the features were detected.
    unsafe { enter(body, Avx512::new_unchecked()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalar_is_always_there_and_best_is_available() {
        let available = Isa::available();
        assert_eq!(available[0].tier(), Tier::Scalar);
        assert!(available.contains(&Isa::best()));
        for isa in available {
            assert_eq!(Isa::by_name(isa.name()), Ok(isa));
        }
    }

    #[test]
    fn wrong_names_are_errors_with_a_hint() {
        let unknown = Isa::by_name("sse9").unwrap_err().to_string();
        assert!(
            unknown.contains("'sse9'") && unknown.contains("hint: PRIMAL_ISA="),
            "{unknown}"
        );
        let neon = Isa::by_name("neon").unwrap_err();
        assert_eq!(neon, KernelError::UnavailableTier { name: "neon" });
        assert!(neon.to_string().contains("scalar"), "{neon}");
    }
}
