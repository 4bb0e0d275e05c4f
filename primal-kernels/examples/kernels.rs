//! Compiles the CUDA kernels without a GPU: `ptx` writes PTX that is part of the program, `matrix`
//! prints registers, spills and shared memory of every kernel on every architecture.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use primal_kernels::cuda::{Nvrtc, OPTIONS, Unit};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["ptx", nvrtc, unit @ ("kernels" | "tensor"), architecture] => {
            let unit = match unit {
                "tensor" => Unit::Tensor,
                _ => Unit::Kernels,
            };
            let first = format!("// sources {}\n", unit.source_hash());
            ptx(Path::new(nvrtc), unit.source(), architecture, &first)
        }
        ["ptx", nvrtc, file, architecture] => std::fs::read_to_string(file)
            .map_err(|error| error.to_string())
            .and_then(|text| ptx(Path::new(nvrtc), text, architecture, "")),
        ["matrix", nvrtc, ref architectures @ ..] => matrix(Path::new(nvrtc), architectures),
        _ => Err(
            "usage: kernels ptx NVRTC kernels|tensor|FILE.cu ARCHITECTURE | matrix NVRTC ARCHITECTURE..."
                .into(),
        ),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// PTX for `architecture` to stdout, `first` before it.
fn ptx(nvrtc: &Path, text: String, architecture: &str, first: &str) -> Result<(), String> {
    let nvrtc = Nvrtc::open(nvrtc).map_err(|error| error.to_string())?;
    let compiled = nvrtc
        .compile(&text, architecture, &OPTIONS)
        .map_err(|error| error.to_string())?;
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(first.as_bytes())
        .and_then(|()| stdout.write_all(&compiled.image))
        .and_then(|()| stdout.flush())
        .map_err(|error| error.to_string())
}

/// The assembler's report for every architecture: it names each kernel's registers and spills.
fn matrix(nvrtc: &Path, architectures: &[&str]) -> Result<(), String> {
    let nvrtc = Nvrtc::open(nvrtc).map_err(|error| error.to_string())?;
    let mut options = OPTIONS.to_vec();
    options.push("--ptxas-options=-v");
    for architecture in architectures {
        println!("{architecture}");
        let capability = architecture.trim_start_matches("sm_").parse::<i32>();
        let capability = capability.map_err(|_| format!("{architecture} is no sm_N"))?;
        for unit in [Unit::Kernels, Unit::Tensor] {
            if capability < unit.oldest() {
                continue;
            }
            let compiled = nvrtc
                .compile(&unit.source(), architecture, &options)
                .map_err(|error| format!("{architecture}: {error}"))?;
            println!("{}", compiled.log);
        }
    }
    Ok(())
}
