//! PTX text to kernels: directives, parameters, memory, labels; instructions go to `decode`.

use std::collections::{BTreeMap, HashMap};

use crate::decode::Decoder;
use crate::error::ParseError;
use crate::instruction::{Constant, Instruction};
use crate::types::Type;

/// A parsed PTX module.
#[derive(Clone, Debug)]
pub struct Module {
    /// The PTX ISA version, such as "7.8".
    pub version: String,
    /// The target, such as "sm_61".
    pub target: String,
    /// The kernels by name.
    pub kernels: BTreeMap<String, Kernel>,
}

/// One kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// The target of its module.
    pub target: String,
    /// Bytes of each parameter.
    pub params: Vec<usize>,
    /// Bytes of static shared memory.
    pub static_shared_bytes: usize,
    /// Bytes of local memory of a thread.
    pub local_bytes: usize,
    /// Threads of a block as `.maxntid` limits them; 1024 without it.
    pub max_threads: u32,
    pub(crate) param_offsets: Vec<usize>,
    pub(crate) param_bytes: usize,
    pub(crate) code: Vec<Instruction>,
    pub(crate) registers: usize,
    pub(crate) constants: Vec<Constant>,
}

impl Kernel {
    /// The 1-based line of the PTX of each instruction, in order.
    pub fn lines(&self) -> impl Iterator<Item = u32> {
        self.code.iter().map(|instruction| instruction.line)
    }
}

/// Reads a module. Refuses what the interpreter cannot run and what a driver would not load.
pub fn parse(text: &str) -> Result<Module, ParseError> {
    let mut module = Module {
        version: String::new(),
        target: String::new(),
        kernels: BTreeMap::new(),
    };
    let mut lines = Lines::new(text);
    let mut dynamic_shared = Vec::new();
    while let Some((line, text)) = lines.next() {
        let unsupported = |what: &str| ParseError::Unsupported {
            line,
            what: what.to_string(),
            text: text.to_string(),
        };
        if let Some(version) = text.strip_prefix(".version ") {
            module.version = version.to_string();
        } else if let Some(target) = text.strip_prefix(".target ") {
            module.target = target.to_string();
        } else if text.starts_with(".extern .func") {
            return Err(ParseError::UnresolvedExtern {
                line,
                text: text.to_string(),
            });
        } else if text.starts_with(".extern .shared") {
            dynamic_shared.push(declared_name(text).to_string());
        } else if let Some(at) = text.find(".entry ") {
            let mut kernel = parse_kernel(&text[at + 7..], line, &mut lines, &dynamic_shared)?;
            kernel.target.clone_from(&module.target);
            module.kernels.insert(kernel.name.clone(), kernel);
        } else if text.contains(".func ") {
            return Err(unsupported("a function that was not inlined"));
        } else if [".global", ".const", ".visible", ".shared"]
            .iter()
            .any(|space| text.starts_with(space))
        {
            return Err(unsupported("a variable of the module"));
        }
    }
    Ok(module)
}

/// Lines without comments and blanks, numbered from 1.
struct Lines<'a> {
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Lines {
            lines: text.lines().enumerate(),
        }
    }

    fn next(&mut self) -> Option<(u32, &'a str)> {
        for (index, line) in self.lines.by_ref() {
            let line = line.split("//").next().unwrap_or_default().trim();
            if !line.is_empty() {
                return Some((index as u32 + 1, line));
            }
        }
        None
    }
}

/// The name in a declaration such as `.shared .align 4 .b8 name[64];`.
fn declared_name(text: &str) -> &str {
    let last = text.trim_end_matches(';').split_whitespace().next_back();
    last.unwrap_or_default()
        .split('[')
        .next()
        .unwrap_or_default()
}

/// What a declaration takes: (name, bytes, alignment).
fn declaration(text: &str) -> Option<(&str, usize, usize)> {
    let words: Vec<&str> = text.trim_end_matches(';').split_whitespace().collect();
    let ty = words
        .iter()
        .filter_map(|word| Type::parse(word.strip_prefix('.')?))
        .next_back()?;
    let align = words
        .iter()
        .position(|word| *word == ".align")
        .and_then(|at| words.get(at + 1)?.parse().ok())
        .unwrap_or(ty.bytes());
    let count = match text.split_once('[') {
        None => 1,
        Some((_, rest)) => rest.split(']').next()?.parse().ok()?,
    };
    Some((declared_name(text), ty.bytes() * count, align))
}

/// A kernel from the text behind `.entry ` on.
fn parse_kernel(
    head: &str,
    line: u32,
    lines: &mut Lines<'_>,
    dynamic_shared: &[String],
) -> Result<Kernel, ParseError> {
    let mut head = head.to_string();
    let unsupported = |line: u32, what: &str, text: &str| ParseError::Unsupported {
        line,
        what: what.to_string(),
        text: text.to_string(),
    };
    while !head.contains('{') {
        let (_, more) = lines
            .next()
            .ok_or_else(|| unsupported(line, "a kernel without a body", &head))?;
        head.push(' ');
        head.push_str(more);
    }
    let name = head
        .split(['(', ' '])
        .next()
        .unwrap_or_default()
        .to_string();
    let mut symbols = HashMap::new();
    let (mut params, mut param_offsets, mut param_bytes) = (Vec::new(), Vec::new(), 0_usize);
    let list = head
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .map_or("", |(list, _)| list);
    for param in list.split(',').filter(|param| param.contains(".param")) {
        let (param_name, bytes, align) = declaration(param.trim())
            .ok_or_else(|| unsupported(line, "a parameter's type", param))?;
        param_bytes = param_bytes.next_multiple_of(align);
        symbols.insert(param_name.to_string(), param_bytes as u64);
        params.push(bytes);
        param_offsets.push(param_bytes);
        param_bytes += bytes;
    }
    let max_threads = head
        .split_once(".maxntid ")
        .map_or(1024, |(_, sizes)| product_of_sizes(sizes));

    let (mut shared, mut local) = (0_usize, 0_usize);
    let mut labels = HashMap::new();
    let mut body: Vec<(u32, &str)> = Vec::new();
    loop {
        let (line, text) = lines
            .next()
            .ok_or_else(|| unsupported(line, "a kernel without an end", &name))?;
        if text == "}" {
            break;
        }
        if let Some(label) = text.strip_suffix(':') {
            labels.insert(label.to_string(), body.len());
        } else if text.starts_with(".shared") || text.starts_with(".local") {
            let (variable, bytes, align) =
                declaration(text).ok_or_else(|| unsupported(line, "a declaration", text))?;
            let used = if text.starts_with(".shared") {
                &mut shared
            } else {
                &mut local
            };
            *used = used.next_multiple_of(align);
            symbols.insert(variable.to_string(), *used as u64);
            *used += bytes;
        } else if !text.starts_with('.') {
            body.push((line, text));
        }
    }
    // Dynamic shared memory lies behind the static one.
    let shared = shared.next_multiple_of(16);
    for variable in dynamic_shared {
        symbols.insert(variable.clone(), shared as u64);
    }

    let mut decoder = Decoder::new(&symbols, &labels);
    let mut code = body
        .iter()
        .map(|&(line, text)| {
            decoder
                .decode(text.trim_end_matches(';').trim(), line)
                .map_err(|what| unsupported(line, &what, text))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let (registers, constants) = decoder.finish(&mut code);
    Ok(Kernel {
        name,
        target: String::new(),
        params,
        static_shared_bytes: shared,
        local_bytes: local,
        max_threads,
        param_offsets,
        param_bytes,
        code,
        registers,
        constants,
    })
}

fn product_of_sizes(text: &str) -> u32 {
    text.split(|c: char| !c.is_ascii_digit() && c != ',' && c != ' ')
        .next()
        .unwrap_or_default()
        .split(',')
        .filter_map(|size| size.trim().parse::<u32>().ok())
        .product()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = ".version 7.8\n.target sm_61\n.address_size 64\n";

    #[test]
    fn parameters_and_memory_are_laid_out() {
        let text = format!(
            "{HEADER}.extern .shared .align 16 .b8 extra[];\n.visible .entry k(\n\
             .param .u64 k_param_0,\n.param .u32 k_param_1,\n.param .align 4 .b8 k_param_2[12]\n)\n\
             .maxntid 64, 2, 1\n{{\n.reg .b32 %r<4>;\n.shared .align 4 .b8 one[20];\n\
             .local .align 8 .b8 depot[16];\nmov.u32 %r1, one;\nmov.u32 %r2, extra;\nret;\n}}\n"
        );
        let module = parse(&text).unwrap();
        assert_eq!(
            (module.version.as_str(), module.target.as_str()),
            ("7.8", "sm_61")
        );
        let kernel = &module.kernels["k"];
        assert_eq!(kernel.params, [8, 4, 12]);
        assert_eq!(kernel.param_offsets, [0, 8, 12]);
        assert_eq!((kernel.static_shared_bytes, kernel.local_bytes), (32, 16));
        assert_eq!(kernel.max_threads, 128);
    }

    #[test]
    fn an_unresolved_function_is_refused_with_its_line() {
        let text = format!("{HEADER}.extern .func (.param .b32 func_retval0) _Z6__dp4aiii\n");
        let error = parse(&text).unwrap_err();
        assert!(
            matches!(error, ParseError::UnresolvedExtern { line: 4, .. }),
            "{error}"
        );
    }

    #[test]
    fn an_unknown_instruction_is_refused_with_its_line() {
        let text = format!("{HEADER}.visible .entry k()\n{{\nwgmma.fence;\n}}\n");
        let error = parse(&text).unwrap_err().to_string();
        assert!(
            error.contains("line 6") && error.contains("wgmma"),
            "{error}"
        );
    }
}
