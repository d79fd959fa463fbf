//! Checks of the repository itself, for what the compiler cannot see: `cargo xtask layers` and
//! `cargo xtask docs`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]

mod docs;
mod layers;
mod markdown;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

const USAGE: &str = "\
Usage: cargo xtask <check>

Checks:
  layers  every crate imports only crates below it, as docs/architecture.md draws them
  docs    every page is reachable, every link leads somewhere, every crate is on the map

Exit status: 0 when the check holds, 1 when it does not, 2 for a usage error.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (name, findings) = match words.as_slice() {
        ["-h" | "--help" | "help"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        ["layers"] => ("layers", in_repository(layers::check)),
        ["docs"] => ("docs", in_repository(docs::check)),
        [] => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
        _ => {
            eprintln!("xtask: unknown: {}\n\n{USAGE}", words.join(" "));
            return ExitCode::from(2);
        }
    };
    match findings {
        Ok(findings) if findings.is_empty() => {
            println!("{name}: ok");
            ExitCode::SUCCESS
        }
        Ok(findings) => {
            for finding in &findings {
                eprintln!("{name}: {finding}");
            }
            eprintln!("{name}: {} to mend", findings.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{name}: cannot check: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a check on the repository this program was built from.
fn in_repository(check: fn(&Path) -> Result<Vec<String>>) -> Result<Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask is not inside a repository")?;
    check(root)
}
