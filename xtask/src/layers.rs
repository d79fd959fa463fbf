//! Which crate may import which: `docs/architecture.md` draws it, this table decides it.
//!
//! Arrows point down, never sideways. What a crate may import is a list, not merely "anything
//! below", because some edges are absent on purpose: formats and frontends meet only as
//! `dyn BlockDevice`, the runner never sees the database.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// One crate's place.
struct Rule {
    package: &'static str,
    layer: u8,
    imports: &'static [&'static str],
}

const fn rule(package: &'static str, layer: u8, imports: &'static [&'static str]) -> Rule {
    Rule { package, layer, imports }
}

const RULES: &[Rule] = &[
    rule(
        "kiln-cli",
        5,
        &[
            "kiln-runner",
            "kiln-history",
            "kiln-store",
            "kiln-image",
            "kiln-parallax",
            "kiln-overlaybd",
            "kiln-registry",
            "kiln-qcow2",
            "kiln-export",
            "kiln-vm",
            "kiln-model",
            "kiln-block",
        ],
    ),
    rule(
        "kiln-runner",
        4,
        &[
            "kiln-store",
            "kiln-image",
            "kiln-overlaybd",
            "kiln-qcow2",
            "kiln-export",
            "kiln-vm",
            "kiln-model",
            "kiln-block",
        ],
    ),
    rule("kiln-history", 4, &["kiln-model"]),
    rule(
        "kiln-store",
        3,
        &[
            "kiln-parallax",
            "kiln-overlaybd",
            "kiln-registry",
            "kiln-qcow2",
            "kiln-export",
            "kiln-block",
        ],
    ),
    rule("kiln-image", 2, &["kiln-model", "kiln-block"]),
    rule("kiln-parallax", 2, &["kiln-block"]),
    // The same source under a scheduler of threads, for tests.
    rule("kiln-parallax-schedules", 2, &["kiln-block"]),
    rule("kiln-overlaybd", 2, &["kiln-block"]),
    rule("kiln-registry", 2, &["kiln-block"]),
    rule("kiln-qcow2", 2, &["kiln-block"]),
    rule("kiln-export", 2, &["kiln-block"]),
    // Units only: drives are sockets or paths to it.
    rule("kiln-vm", 2, &["kiln-model", "kiln-block"]),
    rule("kiln-guest", 2, &["kiln-model"]),
    // Units only.
    rule("kiln-model", 1, &["kiln-block"]),
    rule("kiln-block", 0, &[]),
    // What is fuzzed, in tests.
    rule(
        "kiln-fuzz-replay",
        5,
        &[
            "kiln-store",
            "kiln-history",
            "kiln-image",
            "kiln-export",
            "kiln-overlaybd",
            "kiln-registry",
            "kiln-qcow2",
            "kiln-vm",
            "kiln-model",
            "kiln-block",
        ],
    ),
    // Checks the others from outside, so it can use none of them.
    rule("xtask", 0, &[]),
];

/// Edges that exist in tests only. The guest's executable is driven from outside, in a machine, whose sizes
/// are counted in units.
const TEST_EDGES: &[(&str, &str)] =
    &[("kiln-guest", "kiln-vm"), ("kiln-guest", "kiln-image"), ("kiln-guest", "kiln-block")];

/// Heavy dependencies, and the crates that may pay for them.
const QUARANTINE: &[(&str, &[&str])] =
    &[("rusqlite", &["kiln-history"]), ("clap", &["kiln-cli"]), ("indicatif", &["kiln-cli"])];

/// The parts of `cargo metadata` this check reads.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `None` for ordinary ones, else `dev` or `build`.
    kind: Option<String>,
    uses_default_features: bool,
}

/// Asks cargo for the workspace and returns what is wrong with it, a sentence each.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata wrote")?;
    Ok(findings(&metadata.packages))
}

fn findings(packages: &[Package]) -> Vec<String> {
    packages.iter().flat_map(package_findings).collect()
}

fn package_findings(package: &Package) -> Vec<String> {
    let Some(own) = find(&package.name) else {
        return vec![format!(
            "{} has no layer: give it one in xtask/src/layers.rs and docs/architecture.md",
            package.name
        )];
    };
    package.dependencies.iter().filter_map(|import| import_finding(own, import)).collect()
}

fn find(package: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.package == package)
}

fn import_finding(own: &Rule, import: &Dependency) -> Option<String> {
    let kind = match import.kind.as_deref() {
        Some("dev") => " in its tests",
        Some(_) => " in its build script",
        None => "",
    };
    if let Some((_, may)) = QUARANTINE.iter().find(|(name, _)| *name == import.name) {
        return (!may.contains(&own.package)).then(|| {
            format!("{} imports {}{kind}; it stays in {}", own.package, import.name, may.join(", "))
        });
    }
    if !import.name.starts_with("kiln-") || import.name == own.package {
        return None;
    }
    let in_tests = import.kind.as_deref() == Some("dev");
    if in_tests && TEST_EDGES.contains(&(own.package, import.name.as_str())) {
        return None;
    }
    let Some(other) = find(&import.name) else {
        return Some(format!("{} imports {}{kind}, which has no layer", own.package, import.name));
    };
    if other.layer >= own.layer {
        let direction = if other.layer == own.layer { "sideways" } else { "upward" };
        return Some(format!(
            "{} (layer {}) imports {} (layer {}){kind}: arrows point down, never {direction}",
            own.package, own.layer, other.package, other.layer
        ));
    }
    if !own.imports.contains(&other.package) {
        return Some(format!(
            "{} imports {}{kind}: that edge is not drawn; it may import {}",
            own.package,
            other.package,
            own.imports.join(", ")
        ));
    }
    if own.package == "kiln-guest" && import.uses_default_features {
        return Some(format!(
            "kiln-guest imports {}{kind} with default features: they bring serde into every image",
            other.package
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(name: &str, kind: Option<&str>) -> Dependency {
        Dependency {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            uses_default_features: false,
        }
    }

    fn judge(package: &str, imports: Vec<Dependency>) -> Vec<String> {
        findings(&[Package { name: package.to_owned(), dependencies: imports }])
    }

    #[test]
    fn the_table_itself_only_points_down_and_only_names_crates_it_knows() {
        for own in RULES {
            for import in own.imports {
                let other = find(import).unwrap_or_else(|| panic!("{import} is not in the table"));
                assert!(other.layer < own.layer, "{} -> {import}", own.package);
            }
        }
    }

    #[test]
    fn a_drawn_edge_is_accepted_and_foreign_crates_are_not_our_business() {
        let imports =
            vec![import("kiln-image", None), import("kiln-vm", None), import("tar", None)];
        assert_eq!(judge("kiln-runner", imports), Vec::<String>::new());
    }

    #[test]
    fn an_upward_and_a_sideways_import_are_refused_each_by_its_name() {
        let found = judge("kiln-vm", vec![import("kiln-runner", None), import("kiln-image", None)]);
        assert_eq!(
            found,
            [
                "kiln-vm (layer 2) imports kiln-runner (layer 4): arrows point down, never upward",
                "kiln-vm (layer 2) imports kiln-image (layer 2): arrows point down, never sideways",
            ]
        );
    }

    #[test]
    fn an_import_from_below_that_is_not_drawn_is_refused_even_in_tests() {
        assert_eq!(
            judge("kiln-history", vec![import("kiln-vm", Some("dev"))]),
            ["kiln-history imports kiln-vm in its tests: that edge is not drawn; it may import \
              kiln-model"]
        );
    }

    #[test]
    fn an_edge_for_tests_is_none_for_the_program() {
        assert_eq!(judge("kiln-guest", vec![import("kiln-vm", Some("dev"))]), Vec::<String>::new());
        assert_eq!(judge("kiln-guest", vec![import("kiln-vm", None)]).len(), 1);
        assert_eq!(judge("kiln-guest", vec![import("kiln-runner", Some("dev"))]).len(), 1);
    }

    #[test]
    fn a_crate_without_a_place_is_told_where_to_get_one() {
        let found = judge("kiln-network", Vec::new());
        assert_eq!(
            found,
            ["kiln-network has no layer: give it one in xtask/src/layers.rs and \
              docs/architecture.md"]
        );
        let found = judge("kiln-cli", vec![import("kiln-network", None)]);
        assert_eq!(found, ["kiln-cli imports kiln-network, which has no layer"]);
    }

    #[test]
    fn heavy_dependencies_stay_in_the_crate_that_needs_them() {
        assert_eq!(judge("kiln-history", vec![import("rusqlite", None)]), Vec::<String>::new());
        assert_eq!(
            judge("kiln-runner", vec![import("rusqlite", None)]),
            ["kiln-runner imports rusqlite; it stays in kiln-history"]
        );
    }

    #[test]
    fn the_guest_takes_the_model_without_its_text_forms() {
        let with_text = Dependency { uses_default_features: true, ..import("kiln-model", None) };
        assert_eq!(judge("kiln-guest", vec![with_text]).len(), 1);
        assert_eq!(judge("kiln-guest", vec![import("kiln-model", None)]), Vec::<String>::new());
    }
}
