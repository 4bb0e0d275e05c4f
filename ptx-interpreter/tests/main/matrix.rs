//! Products of matrices by a warp: where the elements lie in registers, and what must not be.
//!
//! The tables here follow the text of the PTX ISA element by element, a0 to a15, b0 to b7, c0 to
//! c3 ("Matrix Fragments for mma.m8n8k16" and "for mma.m16n8k32"); the interpreter's are written by
//! register, so that a slip in one of them shows.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use ptx_interpreter::{Counts, Fault, KernelFault, Launch, Memory, launch, parse};

/// (row, column) of element `i` of a lane.
type Place = fn(lane: usize, i: usize) -> (usize, usize);

struct Shape {
    name: &'static str,
    rows: usize,
    depth: usize,
    /// Elements that a lane has of a, b and c.
    elements: [usize; 3],
    places: [Place; 3],
}

const SMALL: Shape = Shape {
    name: "m8n8k16",
    rows: 8,
    depth: 16,
    elements: [4, 4, 2],
    places: [
        |lane, i| (lane >> 2, (lane % 4) * 4 + i),
        |lane, i| ((lane % 4) * 4 + i, lane >> 2),
        |lane, i| (lane >> 2, (lane % 4) * 2 + i),
    ],
};

const LARGE: Shape = Shape {
    name: "m16n8k32",
    rows: 16,
    depth: 32,
    elements: [16, 8, 4],
    places: [
        |lane, i| {
            let row = match i {
                0..4 | 8..12 => lane >> 2,
                _ => (lane >> 2) + 8,
            };
            let col = match i {
                0..8 => (lane % 4) * 4 + (i & 3),
                _ => (lane % 4) * 4 + (i & 3) + 16,
            };
            (row, col)
        },
        |lane, i| {
            let row = match i {
                0..4 => (lane % 4) * 4 + (i & 3),
                _ => (lane % 4) * 4 + (i & 3) + 16,
            };
            (row, lane >> 2)
        },
        |lane, i| {
            let row = match i {
                0..2 => lane >> 2,
                _ => (lane >> 2) + 8,
            };
            (row, (lane % 4) * 2 + (i & 1))
        },
    ],
};

/// A kernel in which each thread loads its registers of a, b and c, multiplies and stores d, all at
/// (threads, registers) u32 of one buffer; `before` stands before the product.
fn kernel(shape: &Shape, before: &str, guard: &str) -> String {
    let [a, b, c] = shape.elements;
    let (a, b) = (a / 4, b / 4);
    let registers = a + b + c;
    let list = |from: usize, count: usize| {
        let names: Vec<String> = (from..from + count).map(|i| format!("%r{i}")).collect();
        format!("{{{}}}", names.join(", "))
    };
    let mut text = format!(
        ".version 7.8\n.target sm_80\n.visible .entry k(.param .u64 data)\n{{\n\
         ld.param.u64 %rd1, [data];\nmul.wide.u32 %rd2, %tid.x, {};\n\
         add.s64 %rd1, %rd1, %rd2;\nsetp.lt.u32 %p1, %tid.x, 31;\n",
        4 * registers
    );
    for i in 0..registers {
        let _ = writeln!(text, "ld.global.u32 %r{i}, [%rd1+{}];", 4 * i);
    }
    let (from_c, result) = (list(a + b, c), list(100, c));
    let _ = writeln!(
        text,
        "{before}\n{guard}mma.sync.aligned.{}.row.col.s32.s8.s8.s32 {result}, {}, {}, {from_c};",
        shape.name,
        list(0, a),
        list(a, b)
    );
    for i in 0..c {
        let at = 4 * (a + b + i);
        let _ = writeln!(text, "st.global.u32 [%rd1+{at}], %r{};", 100 + i);
    }
    text + "$end:\nret;\n}\n"
}

/// Runs the kernel in one block of `threads`, on the registers `data`.
fn run(text: &str, threads: u32, data: &mut [u32]) -> Result<Counts, Box<KernelFault>> {
    let module = parse(text).unwrap();
    let mut memory = Memory::new();
    let address = memory.allocate(4 * data.len());
    let mut bytes: Vec<u8> = data.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write(address, &bytes).unwrap();
    let sizes = Launch {
        grid: [1; 3],
        block: [threads, 1, 1],
        dynamic_shared_bytes: 0,
    };
    let counts = launch(
        &module.kernels["k"],
        &mut memory,
        &sizes,
        &[address.to_le_bytes().as_slice()],
    )?;
    memory.read(address, &mut bytes).unwrap();
    for (word, bytes) in data.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    Ok(counts)
}

/// Bytes of every sign and size.
fn byte(seed: usize) -> i8 {
    (seed.wrapping_mul(0x9e37_79b9) >> 7) as i8
}

#[test]
fn elements_lie_where_the_isa_says() {
    for shape in [SMALL, LARGE] {
        let (rows, depth) = (shape.rows, shape.depth);
        // Each of two warps has an a of its own.
        let a: [Vec<i8>; 2] =
            [0, 5000].map(|seed| (0..rows * depth).map(|i| byte(seed + i)).collect());
        let b: Vec<i8> = (0..depth * 8).map(|i| byte(i + 7777)).collect();
        // One sum begins so high that it wraps.
        let c: Vec<i32> = (0..rows * 8)
            .map(|i| {
                if i == 9 {
                    i32::MAX
                } else {
                    i as i32 * 1000 - 31_000
                }
            })
            .collect();
        let [a_at, b_at, c_at] = shape.places;
        let mut registers = Vec::new();
        for a in &a {
            for lane in 0..32 {
                let element = |(at, matrix, width): (Place, &[i8], usize), i| {
                    let (row, col) = at(lane, i);
                    matrix[row * width + col].cast_unsigned()
                };
                let word = |from: (Place, &[i8], usize), first: usize| {
                    u32::from_le_bytes([0, 1, 2, 3].map(|i| element(from, first + i)))
                };
                for first in (0..shape.elements[0]).step_by(4) {
                    registers.push(word((a_at, a, depth), first));
                }
                for first in (0..shape.elements[1]).step_by(4) {
                    registers.push(word((b_at, &b, 8), first));
                }
                for i in 0..shape.elements[2] {
                    let (row, col) = c_at(lane, i);
                    registers.push(c[row * 8 + col].cast_unsigned());
                }
            }
        }
        let counts = run(&kernel(&shape, "", ""), 64, &mut registers).unwrap();
        assert_eq!(counts.matrix, 64);

        let own = registers.len() / 64;
        let mut seen = vec![0; rows * 8];
        for (thread, registers) in registers.chunks(own).enumerate() {
            let a = &a[thread / 32];
            let results = &registers[own - shape.elements[2]..];
            for (i, result) in results.iter().enumerate() {
                let (row, col) = c_at(thread % 32, i);
                seen[row * 8 + col] += 1;
                let product = |k| i32::from(a[row * depth + k]) * i32::from(b[k * 8 + col]);
                let want = (0..depth).map(product).sum::<i32>();
                let want = want.wrapping_add(c[row * 8 + col]);
                assert_eq!(result.cast_signed(), want, "{}: ({row}, {col})", shape.name);
            }
        }
        // Every element once a warp.
        assert!(seen.iter().all(|&times| times == 2));
    }
}

/// Some corners of the figures.
#[test]
fn the_tables_agree_with_the_figures() {
    let [a, b, c] = LARGE.places;
    assert_eq!(
        (a(0, 0), a(0, 4), a(0, 8), a(0, 12)),
        ((0, 0), (8, 0), (0, 16), (8, 16))
    );
    assert_eq!((a(31, 15), a(5, 3)), ((15, 31), (1, 7)));
    assert_eq!((b(0, 3), b(0, 4), b(31, 7)), ((3, 0), (16, 0), (31, 7)));
    assert_eq!((c(0, 1), c(0, 2), c(31, 3)), ((0, 1), (8, 0), (15, 7)));
}

#[test]
fn a_product_without_its_whole_warp_is_found() {
    for shape in [SMALL, LARGE] {
        let data = || vec![0_u32; 64 * 32];
        let is_incomplete = |text: &str, threads: u32| {
            let fault = run(text, threads, &mut data()).unwrap_err();
            assert!(
                matches!(fault.fault, Fault::IncompleteCollective(_)),
                "{fault}"
            );
        };
        let plain = kernel(&shape, "", "");
        run(&plain, 64, &mut data()).unwrap();
        is_incomplete(&plain, 48);
        // The last lane goes around it, has returned, or does not take part.
        is_incomplete(&kernel(&shape, "@!%p1 bra $end;", ""), 32);
        is_incomplete(&kernel(&shape, "@!%p1 ret;", ""), 32);
        is_incomplete(&kernel(&shape, "", "@%p1 "), 32);
    }
}

/// Each lane writes a word and reads its neighbour's after the product, which orders nothing.
#[test]
fn a_product_orders_no_memory() {
    let before = "st.global.u32 [%rd1], %r0;";
    let text = kernel(&SMALL, before, "");
    let neighbour = "ld.global.u32 %r50, [%rd1+16];";
    let reads = text.replacen(
        "st.global.u32 [%rd1+8]",
        &format!("{neighbour}\nst.global.u32 [%rd1+8]"),
        1,
    );
    assert_ne!(reads, text);
    let fault = run(&reads, 32, &mut vec![0; 4 * 33]).unwrap_err();
    assert!(matches!(fault.fault, Fault::Race { .. }), "{fault}");
    let ordered = reads.replace(neighbour, &format!("bar.warp.sync -1;\n{neighbour}"));
    run(&ordered, 32, &mut vec![0; 4 * 33]).unwrap();
}
