//! Measures every kernel workload and prints one JSON object each: `cargo xtask bench` calls it.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use primal_benches::{Size, Units, Workload, workloads};
use primal_kernels::{Isa, multiply_rates, read_bandwidth};
use serde::Serialize;

/// Measures the kernels, one JSON object a line.
#[derive(Debug, Parser)]
struct Args {
    /// A fifth of the time, so with more noise.
    #[arg(long)]
    quick: bool,
    /// Every tier of this machine instead of the best one (or `PRIMAL_ISA`) alone.
    #[arg(long)]
    all_tiers: bool,
}

#[derive(Serialize)]
struct Row<'a> {
    workload: &'a str,
    isa: &'static str,
    threads: usize,
    samples: usize,
    median_us: f64,
    min_us: f64,
    max_us: f64,
    gb_per_s: Option<f64>,
    /// Operations; of integers where the kernel is one of integers.
    gflop_per_s: Option<f64>,
    /// Bytes per second relative to plain reading of memory in the same run: the floor of what
    /// streams more than the caches hold.
    of_read_bandwidth: Option<f64>,
    /// Operations relative to what the same units do out of registers with as many threads, the
    /// better of before and after.
    of_peak: Option<f64>,
}

/// What plain reading is measured on.
const READ_BYTES: usize = 1 << 30;

fn main() -> Result<()> {
    let args = Args::parse();
    let budget = Duration::from_millis(if args.quick { 200 } else { 1000 });
    let tiers = if args.all_tiers {
        Isa::available()
    } else {
        vec![Isa::from_env()?]
    };
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let read = read_bandwidth(Isa::from_env()?, READ_BYTES, 5)?[2] / 1e9;
    for isa in tiers {
        for mut workload in workloads(isa, Size::Real)? {
            let row = measure(&mut workload, isa, budget, read, &one_thread);
            writeln!(std::io::stdout(), "{}", serde_json::to_string(&row)?)?;
        }
    }
    Ok(())
}

/// Operations a second that `workload` could make of its units and threads, out of registers.
fn peak(workload: &Workload, isa: Isa, one_thread: &rayon::ThreadPool) -> Option<f64> {
    if workload.flops == 0 {
        return None;
    }
    let rates = if workload.name.contains("1 thread") {
        one_thread.install(|| multiply_rates(isa, 3))
    } else {
        multiply_rates(isa, 3)
    }?;
    let multiply_adds = match workload.units {
        Units::F32 => rates.f32,
        Units::Int8 => rates.int8,
        Units::Int16 => rates.int16,
    };
    Some(2.0 * multiply_adds)
}

/// Runs a workload for `budget`, at least three times, after one run that does not count.
fn measure<'a>(
    workload: &'a mut Workload,
    isa: Isa,
    budget: Duration,
    read_gb_per_s: f64,
    one_thread: &rayon::ThreadPool,
) -> Row<'a> {
    // The clock of a shared machine changes by the minute.
    let before = peak(workload, isa, one_thread);
    workload.run();
    let mut seconds = Vec::new();
    let started = Instant::now();
    while seconds.len() < 3 || started.elapsed() < budget {
        let run_started = Instant::now();
        workload.run();
        seconds.push(run_started.elapsed().as_secs_f64());
    }
    let peak = before.zip(peak(workload, isa, one_thread));
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let giga_per_s = |amount: u64| (amount > 0).then(|| amount as f64 / median / 1e9);
    Row {
        workload: &workload.name,
        isa: isa.name(),
        threads: rayon::current_num_threads(),
        samples: seconds.len(),
        median_us: median * 1e6,
        min_us: seconds[0] * 1e6,
        max_us: seconds[seconds.len() - 1] * 1e6,
        gb_per_s: giga_per_s(workload.bytes),
        gflop_per_s: giga_per_s(workload.flops),
        of_read_bandwidth: giga_per_s(workload.bytes).map(|rate| rate / read_gb_per_s),
        of_peak: giga_per_s(workload.flops)
            .zip(peak)
            .map(|(rate, (before, after))| rate * 1e9 / before.max(after)),
    }
}
