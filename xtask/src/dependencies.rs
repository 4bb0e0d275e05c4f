//! The direction in which the workspace's crates may depend on each other.

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::tools::{capture, cargo};

/// Every crate of the workspace and the crates of ours that it may use.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("primal-lut", &[]),
    ("primal-kernels", &["primal-lut"]),
    ("primal-optim", &["primal-lut", "primal-kernels"]),
    (
        "primal-model",
        &["primal-lut", "primal-kernels", "primal-optim"],
    ),
    ("primal-vocoder", &["primal-lut", "primal-kernels"]),
    (
        "primal-cli",
        &[
            "primal-lut",
            "primal-kernels",
            "primal-optim",
            "primal-model",
            "primal-vocoder",
        ],
    ),
    (
        "primal-benches",
        &[
            "primal-lut",
            "primal-kernels",
            "primal-optim",
            "primal-model",
        ],
    ),
    ("xtask", &[]),
    ("ptx-interpreter", &[]),
    ("cuda-standin", &["ptx-interpreter"]),
    ("cublas-standin", &[]),
];

/// Crates that stand in for hardware in tests: anybody's dev-dependency, nobody's dependency.
const FOR_TESTS: [&str; 2] = ["cuda-standin", "cublas-standin"];

/// What `cargo metadata` says of the workspace.
#[derive(Deserialize)]
pub struct Metadata {
    /// The workspace's own crates.
    pub packages: Vec<Package>,
}

/// One crate.
#[derive(Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Path of its Cargo.toml.
    pub manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// Set for a crate of the workspace.
    path: Option<String>,
    /// "dev" or "build"; absent for a plain dependency.
    kind: Option<String>,
}

/// Fails on the first crates that depend on each other in a way that [`ALLOWED`] does not name.
pub fn check() -> Result<()> {
    let violations = violations(&metadata()?);
    if violations.is_empty() {
        Ok(())
    } else {
        bail!("{}", violations.join("\n       "))
    }
}

/// The workspace's crates, from the locked manifest.
pub fn metadata() -> Result<Metadata> {
    let arguments = ["metadata", "--locked", "--no-deps", "--format-version", "1"];
    Ok(serde_json::from_str(&capture(cargo().args(arguments))?)?)
}

fn violations(metadata: &Metadata) -> Vec<String> {
    let mut found = Vec::new();
    for package in &metadata.packages {
        let allowed = ALLOWED.iter().find(|(name, _)| *name == package.name);
        let Some((name, allowed)) = allowed else {
            found.push(format!(
                "crate {} has no place in the dependency order",
                package.name
            ));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|it| it.path.is_some()) {
            let dependency_name = dependency.name.as_str();
            let for_tests = dependency.kind.as_deref() == Some("dev");
            if for_tests && FOR_TESTS.contains(&dependency_name) {
                continue;
            }
            if !allowed.contains(&dependency_name) {
                found.push(format!("{name} must not depend on {}", dependency.name));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        let path = Some(String::from("somewhere"));
        let dependency = |name: &&str| Dependency {
            name: name.to_string(),
            path: path.clone(),
            kind: None,
        };
        Package {
            name: name.into(),
            manifest_path: String::new(),
            dependencies: dependencies.iter().map(dependency).collect(),
        }
    }

    #[test]
    fn the_direction_is_enforced() {
        let right = package("primal-kernels", &["primal-lut"]);
        let backwards = package("primal-lut", &["primal-kernels"]);
        let stranger = package("primal-new", &[]);
        let found = violations(&Metadata {
            packages: vec![right, backwards, stranger],
        });
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].contains("primal-lut must not depend on primal-kernels"),
            "{found:?}"
        );
        assert!(found[1].contains("primal-new"), "{found:?}");
    }

    #[test]
    fn stand_ins_are_for_tests_alone() {
        let mut optim = package("primal-optim", &["cuda-standin"]);
        let metadata = |optim| Metadata {
            packages: vec![optim],
        };
        optim.dependencies[0].kind = Some("dev".into());
        assert!(violations(&metadata(optim)).is_empty());
        let shipped = package("primal-optim", &["cuda-standin"]);
        assert_eq!(violations(&metadata(shipped)).len(), 1);
    }

    #[test]
    fn crates_from_elsewhere_are_free() {
        let mut kernels = package("primal-kernels", &["rayon"]);
        kernels.dependencies[0].path = None;
        assert!(
            violations(&Metadata {
                packages: vec![kernels]
            })
            .is_empty()
        );
    }
}
