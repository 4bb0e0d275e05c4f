//! Quantised matrices: layout, quantisation and what is refused.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use primal_lut::{Grid, LutError, QuantMatrix};
use proptest::prelude::*;

fn grids() -> impl Strategy<Value = Grid> {
    prop::sample::select(vec![
        Grid::prime(),
        Grid::fine(),
        Grid::normal(),
        Grid::linear(),
    ])
}

/// A grid, a shape with a group, weights and scales.
fn problems() -> impl Strategy<Value = (Grid, [usize; 3], Vec<f32>, Vec<f32>)> {
    (grids(), 1usize..5, 1usize..70)
        .prop_flat_map(|(grid, rows, cols)| (Just(grid), Just(rows), Just(cols), 1..=cols))
        .prop_flat_map(|(grid, rows, cols, group)| {
            let weights = prop::collection::vec(-2f32..2.0, rows * cols);
            let scales = prop::collection::vec(
                prop_oneof![1e-3f32..10.0, Just(1e-30f32), Just(1e30f32), -3f32..-0.1],
                rows * cols.div_ceil(group),
            );
            (Just(grid), Just([rows, cols, group]), weights, scales)
        })
}

/// A grid, a shape and codes that the grid has.
fn coded() -> impl Strategy<Value = (Grid, [usize; 2], Vec<u8>)> {
    (grids(), 1usize..5, 1usize..70).prop_flat_map(|(grid, rows, cols)| {
        let codes = prop::collection::vec(0..grid.len() as u8, rows * cols);
        (Just(grid), Just([rows, cols]), codes)
    })
}

fn with_codes(grid: &Grid, [rows, cols]: [usize; 2], codes: &[u8]) -> QuantMatrix {
    let mut matrix = QuantMatrix::zeros(grid, rows, cols, cols).unwrap();
    for (index, &code) in codes.iter().enumerate() {
        matrix.set_code(index / cols, index % cols, code).unwrap();
    }
    matrix
}

/// A copy through the stored planes, which are all validated on the way.
fn stored(matrix: &QuantMatrix) -> Result<QuantMatrix, LutError> {
    QuantMatrix::from_planes(
        matrix.grid(),
        matrix.rows(),
        matrix.cols(),
        matrix.group(),
        matrix.nibbles().to_vec(),
        matrix.high().map(<[u8]>::to_vec),
        matrix.scales().to_vec(),
        "block.0.weight",
    )
}

proptest! {
    #[test]
    fn codes_go_in_and_come_out((grid, shape, codes) in coded()) {
        let matrix = with_codes(&grid, shape, &codes);
        let [rows, cols] = shape;
        let mut row_codes = vec![0xff; cols];
        let mut histogram = vec![0; grid.len()];
        for row in 0..rows {
            matrix.row_codes(row, &mut row_codes);
            prop_assert_eq!(&row_codes[..], &codes[row * cols..][..cols]);
            for (col, &code) in row_codes.iter().enumerate() {
                prop_assert_eq!(matrix.code(row, col), code);
                histogram[usize::from(code)] += 1;
            }
        }
        prop_assert_eq!(matrix.code_histogram(), histogram);
        prop_assert_eq!(stored(&matrix).unwrap(), matrix);
    }

    #[test]
    fn every_weight_takes_its_nearest_code((grid, [rows, cols, group], weights, scales) in problems()) {
        let matrix = QuantMatrix::quantise(&grid, rows, cols, group, &weights, scales.clone()).unwrap();
        let values = matrix.dequantise();
        for (index, (&weight, &value)) in weights.iter().zip(&values).enumerate() {
            let (row, col) = (index / cols, index % cols);
            let scale = scales[row * matrix.groups_per_row() + col / group];
            let code = grid.nearest(weight / scale);
            prop_assert_eq!(matrix.code(row, col), code);
            prop_assert_eq!(value, scale * grid.value(code).unwrap());
        }
        prop_assert_eq!(stored(&matrix).unwrap(), matrix);
    }

    #[test]
    fn quantising_again_changes_nothing((grid, [rows, cols, group], weights, scales) in problems()) {
        let once = QuantMatrix::quantise(&grid, rows, cols, group, &weights, scales.clone()).unwrap();
        let twice = QuantMatrix::quantise(&grid, rows, cols, group, &once.dequantise(), scales).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn order_within_a_group_is_preserved((grid, [rows, cols, _], weights, _) in problems(), scale in 1e-3f32..10.0) {
        let matrix = QuantMatrix::quantise(&grid, rows, cols, cols, &weights, vec![scale; rows]).unwrap();
        let mut sorted: Vec<_> = weights.iter().zip(matrix.dequantise()).collect();
        sorted.sort_by(|a, b| a.0.total_cmp(b.0));
        prop_assert!(sorted.is_sorted_by(|a, b| a.1 <= b.1));
    }

    #[test]
    fn an_invalid_code_is_refused_with_tensor_and_position(
        (grid, [rows, cols], codes) in coded(),
        at in any::<prop::sample::Index>(),
        bad in any::<prop::sample::Index>(),
    ) {
        let matrix = with_codes(&grid, [rows, cols], &codes);
        let at = at.index(rows * cols);
        let (row, col) = (at / cols, at % cols);
        let limit = if grid.is_wide() { 32 } else { 16 };
        let bad = grid.len() + bad.index(limit - grid.len());
        let mut nibbles = matrix.nibbles().to_vec();
        let byte = &mut nibbles[row * matrix.row_bytes() + col / 2];
        let low = bad as u8 & 15;
        *byte = if col % 2 == 0 { (*byte & 0xf0) | low } else { (*byte & 15) | (low << 4) };
        let mut high = matrix.high().map(<[u8]>::to_vec);
        if let Some(high) = &mut high {
            high[row * matrix.high_row_bytes() + col / 8] |= 1 << (col % 8);
        }
        let scales = matrix.scales().to_vec();
        let error = QuantMatrix::from_planes(&grid, rows, cols, cols, nibbles, high, scales, "h.3.mlp")
            .unwrap_err();
        let expected = format!("tensor `h.3.mlp`: code {bad} at row {row}, column {col} ");
        prop_assert!(error.to_string().starts_with(&expected), "{}", error);
    }
}

#[test]
fn zeros_hold_the_zero_code_everywhere_padding_included() {
    for (grid, zero, byte) in [(Grid::prime(), 7, 0x77), (Grid::fine(), 12, 0xcc)] {
        for cols in 1..70 {
            let matrix = QuantMatrix::zeros(&grid, 3, cols, cols).unwrap();
            assert!(matrix.nibbles().iter().all(|&found| found == byte));
            assert!(
                matrix
                    .high()
                    .is_none_or(|high| high.iter().all(|&found| found == 0))
            );
            assert_eq!(matrix.high().is_some(), grid.is_wide());
            assert_eq!(matrix.code(2, cols - 1), zero);
            assert_eq!(matrix.scales(), [1.0; 3]);
            assert_eq!(matrix.dequantise(), vec![0.0; 3 * cols]);
            let high_bytes = if grid.is_wide() {
                3 * cols.div_ceil(8)
            } else {
                0
            };
            assert_eq!(matrix.bytes(), 3 * cols.div_ceil(2) + high_bytes + 12);
        }
    }
}

#[test]
fn planes_can_be_changed_in_place() {
    let mut matrix = QuantMatrix::zeros(&Grid::fine(), 2, 3, 3).unwrap();
    let (nibbles, high, scales) = matrix.planes_mut();
    assert_eq!(scales, [1.0, 1.0]);
    nibbles[2] = 0x08;
    high.unwrap()[1] = 0b11;
    matrix.scales_mut()[1] = 2.0;
    assert_eq!([matrix.code(1, 0), matrix.code(1, 1)], [24, 16]);
    assert_eq!(matrix.dequantise()[3], 2.0);
}

#[test]
fn shapes_that_no_matrix_has_are_refused() {
    let grid = Grid::prime();
    let shapes = [
        (0, 4, 4),
        (4, 0, 0),
        (4, 4, 0),
        (4, 4, 5),
        (usize::MAX, 2, 1),
        (1 << 31, 1 << 31, 1),
    ];
    for (rows, cols, group) in shapes {
        let error = QuantMatrix::zeros(&grid, rows, cols, group).unwrap_err();
        assert!(matches!(error, LutError::Shape { .. }), "{error}");
    }
}

#[test]
fn buffers_that_do_not_fit_are_refused() {
    let grid = Grid::prime();
    let length = |result: Result<QuantMatrix, LutError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, LutError::Length { .. }), "{error}");
        error.to_string()
    };
    length(QuantMatrix::quantise(
        &grid,
        2,
        3,
        3,
        &[0.0; 5],
        vec![1.0; 2],
    ));
    length(QuantMatrix::quantise(
        &grid,
        2,
        3,
        3,
        &[0.0; 6],
        vec![1.0; 3],
    ));
    let planes = |grid: &Grid, nibbles: usize, high: Option<usize>, scales: usize| {
        let high = high.map(|len| vec![0; len]);
        length(QuantMatrix::from_planes(
            grid,
            2,
            3,
            2,
            vec![0x77; nibbles],
            high,
            vec![1.0; scales],
            "w",
        ))
    };
    assert_eq!(
        planes(&grid, 3, None, 4),
        "tensor `w`: nibble plane should hold 4 elements but holds 3"
    );
    planes(&grid, 4, Some(2), 4);
    planes(&grid, 4, None, 2);
    planes(&Grid::fine(), 4, None, 4);
    planes(&Grid::fine(), 4, Some(1), 4);
}

#[test]
fn scales_must_be_finite() {
    let grid = Grid::prime();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let scales = vec![1.0, 1.0, 1.0, bad];
        let error = QuantMatrix::quantise(&grid, 2, 3, 2, &[0.0; 6], scales.clone()).unwrap_err();
        assert!(error.to_string().contains("row 1, group 1"), "{error}");
        let error =
            QuantMatrix::from_planes(&grid, 2, 3, 2, vec![0x77; 4], None, scales, "w").unwrap_err();
        assert!(
            matches!(
                error,
                LutError::Scale {
                    row: 1,
                    group: 1,
                    ..
                }
            ),
            "{error}"
        );
    }
    // Zero is finite: every weight reads back as zero.
    let flat = QuantMatrix::quantise(&grid, 1, 3, 3, &[-1.0, 0.0, 1.0], vec![0.0]).unwrap();
    assert!(flat.dequantise().iter().all(|&value| value == 0.0));
}

#[test]
fn padding_must_be_what_the_format_fixes() {
    let planes = |nibbles: Vec<u8>, high: u8| {
        QuantMatrix::from_planes(
            &Grid::fine(),
            1,
            3,
            3,
            nibbles,
            Some(vec![high]),
            vec![1.0],
            "w",
        )
    };
    assert!(planes(vec![0xcc, 0xcc], 0).is_ok());
    for (nibbles, high) in [
        (vec![0xcc, 0x0c], 0),
        (vec![0xcc, 0xcc], 0b1000),
        (vec![0xcc, 0xcc], 0x80),
    ] {
        let error = planes(nibbles, high).unwrap_err();
        assert!(matches!(error, LutError::Padding { row: 0, .. }), "{error}");
    }
}

#[test]
fn codes_and_positions_outside_are_refused() {
    let mut matrix = QuantMatrix::zeros(&Grid::prime(), 2, 3, 3).unwrap();
    assert!(matches!(
        matrix.set_code(0, 0, 15),
        Err(LutError::InvalidCode { code: 15, .. })
    ));
    assert!(matches!(
        matrix.set_code(2, 0, 7),
        Err(LutError::Position { .. })
    ));
    assert!(matches!(
        matrix.set_code(0, 3, 7),
        Err(LutError::Position { .. })
    ));
    assert_eq!(matrix, QuantMatrix::zeros(&Grid::prime(), 2, 3, 3).unwrap());
}
