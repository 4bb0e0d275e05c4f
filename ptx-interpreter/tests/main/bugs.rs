//! Every deliberate bug is caught, at the right place; the correct neighbours run.

#![allow(clippy::unwrap_used)]

use ptx_interpreter::{Fault, KernelFault, Launch, Memory, Module, launch, parse};

const PTX: &str = include_str!("bugs.ptx");

/// A module, memory and the arguments of one launch.
struct Bench {
    module: Module,
    memory: Memory,
}

impl Bench {
    fn new() -> Self {
        Bench {
            module: parse(PTX).unwrap(),
            memory: Memory::new(),
        }
    }

    fn floats(&mut self, values: &[f32]) -> u64 {
        let address = self.memory.allocate(4 * values.len());
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.memory.write(address, &bytes).unwrap();
        address
    }

    fn zeros(&mut self, words: usize) -> u64 {
        self.floats(&vec![0.0; words])
    }

    fn words(&mut self, address: u64, count: usize) -> Vec<u32> {
        let mut bytes = vec![0; 4 * count];
        self.memory.read(address, &mut bytes).unwrap();
        let words = bytes.as_chunks::<4>().0.iter();
        words.map(|word| u32::from_le_bytes(*word)).collect()
    }

    fn run(
        &mut self,
        kernel: &str,
        (blocks, threads): (u32, u32),
        args: &[Arg],
    ) -> Result<(), Box<KernelFault>> {
        let sizes = Launch {
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            dynamic_shared_bytes: 0,
        };
        let bytes: Vec<Vec<u8>> = args.iter().map(Arg::bytes).collect();
        let args: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        launch(
            &self.module.kernels[kernel],
            &mut self.memory,
            &sizes,
            &args,
        )
        .map(|_| ())
    }

    fn fault(&mut self, kernel: &str, sizes: (u32, u32), args: &[Arg]) -> Box<KernelFault> {
        let fault = self.run(kernel, sizes, args).unwrap_err();
        assert_eq!(fault.kernel, kernel);
        assert!(
            fault.line > 0 || matches!(fault.fault, Fault::WrongLaunch(_)),
            "{fault}"
        );
        fault
    }
}

#[derive(Clone, Copy)]
enum Arg {
    Address(u64),
    Int(i32),
}

impl Arg {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Arg::Address(address) => address.to_le_bytes().to_vec(),
            Arg::Int(value) => value.to_le_bytes().to_vec(),
        }
    }
}

use Arg::{Address, Int};

#[test]
fn accesses_outside_a_buffer() {
    let mut bench = Bench::new();
    let x = bench.zeros(64);
    let fault = bench.fault("leaves_global", (3, 32), &[Address(x), Int(64)]);
    assert_eq!((fault.block, fault.thread), ([2, 0, 0], [0, 0, 0]));
    assert_eq!(
        fault.fault,
        Fault::OutOfBounds {
            bytes: 4,
            offset: 256,
            size: 256,
            space: "global"
        }
    );
    bench
        .run("leaves_global", (2, 32), &[Address(x), Int(64)])
        .unwrap();

    let fault = bench.fault("leaves_shared", (1, 32), &[Address(x), Int(1)]);
    assert_eq!(fault.thread, [31, 0, 0]);
    assert!(matches!(
        fault.fault,
        Fault::OutOfBounds {
            space: "shared",
            ..
        }
    ));
    bench
        .run("leaves_shared", (1, 32), &[Address(x), Int(0)])
        .unwrap();
    let wild = bench.fault("leaves_global", (1, 32), &[Address(8), Int(64)]);
    assert!(matches!(wild.fault, Fault::WildAddress { .. }), "{wild}");
}

#[test]
fn an_address_that_is_not_a_multiple() {
    let mut bench = Bench::new();
    let (from, to) = (bench.zeros(64), bench.zeros(64));
    let fault = bench.fault("misaligned", (1, 32), &[Address(from), Address(to)]);
    assert!(
        matches!(fault.fault, Fault::Misaligned { bytes: 4, .. }),
        "{fault}"
    );
}

#[test]
fn barriers_that_not_all_threads_reach() {
    let mut bench = Bench::new();
    let x = bench.zeros(64);
    for kernel in ["divergent_barrier", "two_barriers"] {
        let fault = bench.fault(kernel, (1, 64), &[Address(x)]);
        assert!(matches!(fault.fault, Fault::DivergentBarrier(_)), "{fault}");
    }
    bench
        .run("divergent_barrier", (1, 40), &[Address(x)])
        .unwrap();
}

#[test]
fn collectives_without_all_their_lanes() {
    let mut bench = Bench::new();
    let x = bench.zeros(64);
    let fault = bench.fault("absent_lanes", (1, 32), &[Address(x)]);
    assert!(
        matches!(fault.fault, Fault::IncompleteCollective(_)),
        "{fault}"
    );
    let fault = bench.fault("absent_lanes", (1, 16), &[Address(x)]);
    assert!(fault.to_string().contains("does not exist"), "{fault}");
    let fault = bench.fault("outside_mask", (1, 32), &[Address(x)]);
    assert!(
        matches!(fault.fault, Fault::ShuffleOutsideMask { lane: 16, .. }),
        "{fault}"
    );
}

#[test]
fn races_in_shared_memory() {
    let mut bench = Bench::new();
    let (x, y) = (bench.zeros(64), bench.zeros(64));
    let args = |sync| [Address(x), Address(y), Int(sync)];
    for (kernel, threads) in [("shared_race", 64), ("warp_race", 32)] {
        let fault = bench.fault(kernel, (1, threads), &args(0));
        assert!(
            matches!(
                fault.fault,
                Fault::Race {
                    space: "shared",
                    ..
                }
            ),
            "{fault}"
        );
        bench.run(kernel, (2, threads), &args(1)).unwrap_err();
        bench.run(kernel, (1, threads), &args(1)).unwrap();
    }
    let args = |sync| [Address(x), Address(y), Int(3), Int(sync)];
    let fault = bench.fault("write_after_read", (1, 64), &args(0));
    assert!(
        matches!(
            fault.fault,
            Fault::Race {
                space: "shared",
                ..
            }
        ),
        "{fault}"
    );
    bench.run("write_after_read", (1, 64), &args(1)).unwrap();
}

#[test]
fn races_in_global_memory() {
    let mut bench = Bench::new();
    let x = bench.zeros(64);
    for (kernel, sizes) in [
        ("global_race", (1, 2)),
        ("global_race", (2, 1)),
        ("blocks_race", (4, 32)),
        ("byte_race", (1, 8)),
    ] {
        let fault = bench.fault(kernel, sizes, &[Address(x)]);
        assert!(
            matches!(
                fault.fault,
                Fault::Race {
                    space: "global",
                    ..
                }
            ),
            "{fault}"
        );
    }
    let total = bench.zeros(1);
    // Launches are ordered: what one wrote the next may read.
    for _ in 0..3 {
        bench.run("global_race", (1, 1), &[Address(total)]).unwrap();
    }
    bench
        .run("atomic_total", (4, 64), &[Address(total)])
        .unwrap();
    assert_eq!(bench.words(total, 1), [259]);
}

#[test]
fn reads_of_what_nobody_wrote() {
    let mut bench = Bench::new();
    let (from, to) = (bench.memory.allocate(256), bench.zeros(64));
    let fault = bench.fault("copy", (1, 64), &[Address(from), Address(to)]);
    assert!(
        matches!(
            fault.fault,
            Fault::Uninitialised {
                offset: 0,
                space: "global"
            }
        ),
        "{fault}"
    );
    let fault = bench.fault("uninitialised_shared", (1, 64), &[Address(to)]);
    assert_eq!(fault.thread, [63, 0, 0]);
    assert!(
        matches!(
            fault.fault,
            Fault::Uninitialised {
                offset: 252,
                space: "shared"
            }
        ),
        "{fault}"
    );
}

#[test]
fn launches_that_do_not_fit_the_kernel() {
    let mut bench = Bench::new();
    let x = bench.zeros(64);
    let narrow = [Int(1), Int(1)];
    for (sizes, args) in [
        ((1, 32), &[Address(x)][..]),
        ((1, 32), &narrow[..]),
        ((0, 32), &[Address(x), Int(1)][..]),
        ((1, 2048), &[Address(x), Int(1)][..]),
    ] {
        let fault = bench.fault("divides", sizes, args);
        assert!(matches!(fault.fault, Fault::WrongLaunch(_)), "{fault}");
    }
    let fault = bench.fault("divides", (1, 32), &[Address(x), Int(0)]);
    assert_eq!(fault.fault, Fault::DivisionByZero);
}

#[test]
fn a_correct_kernel_gives_what_it_should() {
    let mut bench = Bench::new();
    let values: Vec<f32> = (0..64)
        .map(|i| if i % 3 == 0 { 1.0 } else { -0.5 })
        .collect();
    let x = bench.floats(&values);
    let (y, ballots) = (bench.zeros(64), bench.zeros(2));
    let args = [Address(x), Address(y), Address(ballots)];
    bench.run("correct", (2, 32), &args).unwrap();

    let own = |i: usize| -> f32 { (0..8).map(|k| values[(i + k) % 64] * k as f32).sum() };
    for block in 0..2 {
        let lanes = block * 32..block * 32 + 32;
        // Halves and small sums are exact.
        let sum: f32 = lanes.clone().map(own).sum();
        let got = bench.words(y, 64)[lanes.start];
        assert_eq!(f32::from_bits(got), sum);
        let ballot = lanes.clone().fold(0, |bits: u32, i| {
            bits | u32::from(values[i] > 0.0) << (i - lanes.start)
        });
        assert_eq!(bench.words(ballots, 2)[block], ballot);
    }
}
