//! `primal doctor`: what this machine offers, and whether the kernels agree on it.

use std::process::ExitCode;
use std::thread::available_parallelism;

use anyhow::{Result, ensure};
use primal_kernels::{
    FlipTable, Isa, Tier, VoteRng, cast_votes_i8, count_row, decode_row, matvec, philox4x32,
};
use primal_lut::{Grid, QuantMatrix};
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::output;

/// Sizes of the self-test: odd, so that every vector loop has a tail.
const ROWS: usize = 37;
const COLS: usize = 301;

#[derive(Serialize)]
struct Report {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
    cpu: Option<String>,
    threads: usize,
    memory_bytes: Option<u64>,
    /// Tiers of the kernels that this processor has.
    tiers: Vec<&'static str>,
    /// The one that is used.
    isa: &'static str,
    cuda: Cuda,
    self_test: Vec<TierTest>,
}

/// What there is of CUDA, and what is missing.
#[derive(Default, Serialize)]
struct Cuda {
    built_in: bool,
    /// CUDA version of the driver.
    driver: Option<String>,
    devices: Vec<Gpu>,
    /// Version and file of the run-time compiler.
    nvrtc: Option<String>,
    /// Version and file of what several GPUs exchange by, in a build that knows it.
    nccl: Option<String>,
    /// Version of cuBLAS, in a build that can use it.
    cublas: Option<String>,
    /// Where compiled kernels are kept.
    cache: Option<String>,
    /// Each with the command that gets it.
    missing: Vec<String>,
}

#[derive(Serialize)]
struct Gpu {
    name: String,
    /// Such as "sm_61".
    architecture: String,
    memory_bytes: u64,
}

impl Cuda {
    #[cfg(feature = "cuda")]
    fn look() -> Cuda {
        let found = primal_kernels::cuda::report();
        let gpu = |(name, capability, memory_bytes)| Gpu {
            name,
            architecture: format!("sm_{capability}"),
            memory_bytes,
        };
        let library = |(version, path)| format!("{version}, {path}");
        Cuda {
            built_in: true,
            driver: found.driver,
            devices: found.devices.into_iter().map(gpu).collect(),
            nvrtc: found.nvrtc.map(library),
            nccl: found.nccl.map(library),
            cublas: found.cublas,
            cache: found.cache,
            missing: found.missing,
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn look() -> Cuda {
        Cuda {
            missing: vec![
                "CUDA is not part of this build; hint: build with --features cuda".into(),
            ],
            ..Cuda::default()
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(
            self.driver
                .iter()
                .map(|version| format!("driver of CUDA {version}")),
        );
        lines.extend(self.devices.iter().map(|gpu| {
            let memory = output::bytes(gpu.memory_bytes);
            format!("{}, {}, {memory}", gpu.name, gpu.architecture)
        }));
        lines.extend(self.nvrtc.iter().map(|nvrtc| format!("NVRTC {nvrtc}")));
        lines.extend(self.nccl.iter().map(|nccl| format!("NCCL {nccl}")));
        lines.extend(
            self.cublas
                .iter()
                .map(|version| format!("cuBLAS {version}")),
        );
        lines.extend(
            self.cache
                .iter()
                .map(|folder| format!("compiled kernels in {folder}")),
        );
        lines.extend(self.missing.iter().cloned());
        lines
    }
}

/// Whether a tier computes bit for bit what the scalar specification does.
#[derive(Serialize)]
struct TierTest {
    tier: &'static str,
    decode: bool,
    matvec: bool,
    cast: bool,
    count: bool,
}

impl TierTest {
    fn passed(&self) -> bool {
        self.decode && self.matvec && self.cast && self.count
    }
}

/// Prints the report; a failed self-test is a failure of the command.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        cpu: proc_field("/proc/cpuinfo", "model name"),
        threads: available_parallelism().map_or(1, usize::from),
        memory_bytes: proc_field("/proc/meminfo", "MemTotal").and_then(|text| kib_to_bytes(&text)),
        tiers: Isa::available().into_iter().map(Isa::name).collect(),
        isa: Isa::from_env()?.name(),
        cuda: Cuda::look(),
        self_test: self_test()?,
    };
    if args.json {
        output::json(&report)?
    } else {
        print(&report)?
    }
    ensure!(
        report.self_test.iter().all(TierTest::passed),
        "the kernels disagree on this machine; hint: PRIMAL_ISA=scalar uses the specification"
    );
    Ok(ExitCode::SUCCESS)
}

fn print(report: &Report) -> Result<()> {
    let unknown = || "unknown".to_string();
    output::line(format_args!(
        "primal     {} on {} {}",
        report.version, report.os, report.arch
    ))?;
    output::line(format_args!(
        "processor  {}",
        report.cpu.clone().unwrap_or_else(unknown)
    ))?;
    output::line(format_args!("threads    {}", report.threads))?;
    let memory = report.memory_bytes.map_or_else(unknown, output::bytes);
    output::line(format_args!("memory     {memory}"))?;
    let tiers = report.tiers.join(", ");
    output::line(format_args!("tiers      {tiers}; using {}", report.isa))?;
    for line in report.cuda.lines() {
        output::line(format_args!("cuda       {line}"))?;
    }
    for test in &report.self_test {
        let word = |passed| if passed { "ok" } else { "WRONG" };
        output::line(format_args!(
            "self-test  {:<8} decode {}  matvec {}  cast {}  count {}",
            test.tier,
            word(test.decode),
            word(test.matvec),
            word(test.cast),
            word(test.count)
        ))?;
    }
    Ok(())
}

/// Runs every tier on the same numbers and compares with the scalar one.
fn self_test() -> Result<Vec<TierTest>> {
    let expected = [
        Outcome::compute(Isa::new(Tier::Scalar)?, &Grid::prime())?,
        Outcome::compute(Isa::new(Tier::Scalar)?, &Grid::fine())?,
    ];
    let mut tests = Vec::new();
    for isa in Isa::available() {
        let found = [
            Outcome::compute(isa, &Grid::prime())?,
            Outcome::compute(isa, &Grid::fine())?,
        ];
        let same = |part: fn(&Outcome) -> &[u8]| {
            found
                .iter()
                .zip(&expected)
                .all(|(found, expected)| part(found) == part(expected))
        };
        tests.push(TierTest {
            tier: isa.name(),
            decode: same(|it| &it.decoded),
            matvec: same(|it| &it.product),
            cast: same(|it| &it.ballot),
            count: same(|it| &it.counted),
        });
    }
    Ok(tests)
}

/// What the kernels make of made-up numbers, as bytes.
struct Outcome {
    decoded: Vec<u8>,
    product: Vec<u8>,
    ballot: Vec<u8>,
    counted: Vec<u8>,
}

impl Outcome {
    fn compute(isa: Isa, grid: &Grid) -> Result<Outcome> {
        let weights = made_up_numbers(ROWS * COLS, 1);
        let mut matrix = QuantMatrix::quantise(grid, ROWS, COLS, COLS, &weights, vec![0.9; ROWS])?;
        let to_bytes = |values: &[f32]| values.iter().flat_map(|it| it.to_le_bytes()).collect();

        let mut row = vec![0.0; COLS];
        let mut decoded = Vec::new();
        for index in 0..ROWS {
            decode_row(isa, &matrix, index, &mut row);
            decoded.extend_from_slice(&row);
        }
        let mut product = vec![0.0; ROWS];
        matvec(isa, &matrix, &made_up_numbers(COLS, 2), &mut product);

        let rng = VoteRng {
            seed: 7,
            stream: 0,
            step: 3,
            tensor: 1,
            micro_batch: 0,
        };
        let gradient = made_up_numbers(ROWS * COLS, 3);
        let column_factor = vec![1.0; COLS];
        let mut ballot = vec![0i8; ROWS * COLS];
        for (index, (ballot, gradient)) in ballot
            .chunks_exact_mut(COLS)
            .zip(gradient.chunks_exact(COLS))
            .enumerate()
        {
            cast_votes_i8(
                isa,
                gradient,
                90.0,
                &column_factor,
                200.0,
                &rng,
                index as u32,
                ballot,
            );
        }
        let cast = ballot.clone();

        let table = FlipTable::new(grid, 127);
        let (row_bytes, high_row_bytes) = (matrix.row_bytes(), matrix.high_row_bytes());
        let (nibbles, mut high, _) = matrix.planes_mut();
        for (index, ballot) in ballot.chunks_exact_mut(COLS).enumerate() {
            let nibbles = &mut nibbles[index * row_bytes..][..row_bytes];
            let high = high
                .as_deref_mut()
                .map(|plane| &mut plane[index * high_row_bytes..][..high_row_bytes]);
            count_row(
                isa,
                nibbles,
                high,
                COLS,
                ballot,
                None,
                &table,
                1 << 20,
                &rng,
                index as u32,
            );
        }
        let mut counted: Vec<u8> = ballot.iter().map(|vote| vote.cast_unsigned()).collect();
        counted.extend_from_slice(matrix.nibbles());
        counted.extend_from_slice(matrix.high().unwrap_or_default());
        Ok(Outcome {
            decoded: to_bytes(&decoded),
            product: to_bytes(&product),
            ballot: cast.iter().map(|vote| vote.cast_unsigned()).collect(),
            counted,
        })
    }
}

/// Numbers between −1 and 1.
fn made_up_numbers(count: usize, stream: u32) -> Vec<f32> {
    let word = |index: usize| philox4x32([index as u32, stream, 0, 0], [1, 2])[0];
    (0..count)
        .map(|index| (f64::from(word(index)) / f64::from(1u32 << 31) - 1.0) as f32)
        .collect()
}

fn proc_field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

fn kib_to_bytes(text: &str) -> Option<u64> {
    Some(text.strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
