//! The program as it is built without features: what it lacks, it names, with what to do.
#![cfg(not(any(feature = "cuda", feature = "mpi")))]

use crate::common::{Workplace, json, refused};

#[test]
fn cuda_is_refused_in_clear_words() {
    let place = Workplace::new();
    for more in [&["--backend", "cuda"][..], &["--gpus", "2"]] {
        refused(
            place.train("run", 2).args(more),
            1,
            &["hint: use --backend cpu", "--features cuda"],
        );
    }
}

#[test]
fn doctor_names_what_was_not_built() {
    let place = Workplace::new();
    let report = json(place.primal("doctor").arg("--json"));
    assert_eq!(report["cuda"]["built_in"], false);
    let missing = report["cuda"]["missing"].to_string();
    assert!(missing.contains("build with --features cuda"), "{missing}");
}

#[test]
fn one_of_several_processes_does_not_train_alone() {
    let place = Workplace::new();
    refused(
        place.train("run", 2).env("OMPI_COMM_WORLD_SIZE", "2"),
        1,
        &["knows no MPI", "--features mpi"],
    );
}
