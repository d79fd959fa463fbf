//! `[[stages]]`: what is run, in order, and `[environment]`, what it sees.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::{Problem, ScenarioError};
use super::quantity::TimeLimit;
use super::section::Section;
use super::{MAX_STAGES, nearest};
use crate::{NameError, StageName};

const KEYS: &[&str] = &[
    "name",
    "count",
    "script",
    "run",
    "arguments",
    "timeout",
    "fresh",
    "environment",
    "artifacts",
    "completion_file",
];

/// How long a stage may run where nobody says otherwise.
const TIMEOUT: TimeLimit = TimeLimit::of_secs(600);

/// One stage of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its name, unique within the scenario.
    pub name: StageName,
    /// What it runs.
    pub script: Script,
    /// The script's arguments.
    pub arguments: Vec<String>,
    /// How long it may run.
    pub timeout: TimeLimit,
    /// Whether it wants a machine (and disks) nobody has used.
    pub fresh: bool,
    /// Environment on top of the scenario's, sorted by name.
    pub environment: Vec<(String, String)>,
    /// Files and folders of the guest to keep afterwards: absolute, `*` and `?` allowed.
    pub artifacts: Vec<String>,
    /// A file the script leaves when it got to its end, if it keeps that protocol.
    pub completion_file: Option<String>,
}

/// What a stage runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    /// A file beside the scenario, not read yet.
    File {
        /// As the scenario names it.
        path: PathBuf,
        /// Where it names it.
        line: usize,
    },
    /// The script itself.
    Text(String),
}

pub(super) fn read_stages(root: &Section<'_, '_>) -> Result<Vec<Stage>, ScenarioError> {
    let sections = root.tables("stages", KEYS)?;
    if sections.len() > MAX_STAGES {
        return Err(root.value_error("stages", format!("at most {MAX_STAGES} stages")));
    }
    let mut first_seen: BTreeMap<StageName, usize> = BTreeMap::new();
    let mut stages = Vec::new();
    for section in sections {
        let stage = read_stage(&section)?;
        let line = section.line_of("name");
        for stage in counted_out(&section, stage)? {
            if let Some(first) = first_seen.insert(stage.name.clone(), line) {
                let what = format!("stage name {:?}", stage.name.as_str());
                return Err(ScenarioError { line, problem: Problem::Duplicate { what, first } });
            }
            stages.push(stage);
        }
        if stages.len() > MAX_STAGES {
            return Err(section.value_error("count", format!("at most {MAX_STAGES} stages")));
        }
    }
    Ok(stages)
}

/// `count = 8` makes eight, numbered behind their name.
fn counted_out(section: &Section<'_, '_>, stage: Stage) -> Result<Vec<Stage>, ScenarioError> {
    let rule = format!("a scenario has 1 to {MAX_STAGES} stages");
    let Some(count) = section.counted("count", MAX_STAGES, &rule)? else { return Ok(vec![stage]) };
    let numbered = |number: usize| {
        let name = format!("{}{number}", stage.name).parse();
        let name = name.map_err(|error: NameError| section.value_error("name", error))?;
        Ok(Stage { name, ..stage.clone() })
    };
    (1..=count).map(numbered).collect()
}

fn read_stage(section: &Section<'_, '_>) -> Result<Stage, ScenarioError> {
    let name = section.required_string("name")?;
    let name: StageName = name.value.parse().map_err(|error| section.value_error("name", error))?;
    let script = match (section.string("script")?, section.string("run")?) {
        (Some(path), None) => {
            if path.value.is_empty() || path.value.contains('\0') {
                return Err(section.value_error("script", "name a file"));
            }
            Script::File { path: PathBuf::from(path.value), line: path.line }
        }
        (None, Some(text)) => {
            if text.value.trim().is_empty() {
                return Err(section.value_error("run", "an empty script tests nothing"));
            }
            Script::Text(text.value)
        }
        (Some(_), Some(_)) => {
            return Err(section.value_error("run", "a stage has a `script` or a `run`, not both"));
        }
        (None, None) => {
            let why = "a stage needs `script = \"file\"` or `run = \"commands\"`";
            return Err(section.missing("run", why));
        }
    };
    let arguments = section.strings("arguments")?;
    if arguments.iter().any(|argument| argument.contains('\0')) {
        return Err(section.value_error("arguments", "an argument holds no NUL"));
    }
    let artifacts = section.strings("artifacts")?;
    for path in &artifacts {
        check_guest_path(path).map_err(|why| section.value_error("artifacts", why))?;
    }
    if artifacts.len() > 64 {
        return Err(section.value_error("artifacts", "at most 64 patterns"));
    }
    let completion_file = section.string("completion_file")?.map(|file| file.value);
    if let Some(path) = &completion_file {
        check_guest_path(path).map_err(|why| section.value_error("completion_file", why))?;
    }
    Ok(Stage {
        name,
        script,
        arguments,
        timeout: section.parsed("timeout")?.unwrap_or(TIMEOUT),
        fresh: section.boolean("fresh")?.unwrap_or(false),
        environment: read_environment(section)?,
        artifacts,
        completion_file,
    })
}

fn check_guest_path(path: &str) -> Result<(), String> {
    let walks_up = path.split('/').any(|part| part == "..");
    if !path.starts_with('/') || path.len() > 4096 || walks_up || path.contains('\0') {
        let shown: String = path.chars().take(64).collect();
        return Err(format!(
            "{shown:?} is not a path in the guest: it starts with / and has no .."
        ));
    }
    Ok(())
}

/// Reads `environment` of the root or of a stage.
pub(super) fn read_environment(
    section: &Section<'_, '_>,
) -> Result<Vec<(String, String)>, ScenarioError> {
    let mut variables = Vec::new();
    for pair in section.string_table("environment")? {
        let (name, value) = pair.value;
        check_variable(&name, &value).map_err(|why| ScenarioError {
            line: pair.line,
            problem: Problem::Value { key: "environment".to_owned(), why },
        })?;
        variables.push((name, value));
    }
    Ok(variables)
}

/// Whether a variable can be handed to a process, and to the shell that reads it.
pub(crate) fn check_variable(name: &str, value: &str) -> Result<(), String> {
    let mut letters = name.chars();
    let starts = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !starts || name.len() > 256 || !letters.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        let shown: String = name.chars().take(64).collect();
        return Err(format!(
            "{shown:?} cannot name a variable: letters, digits and '_', no digit first"
        ));
    }
    if value.contains('\0') || value.len() > 128 << 10 {
        return Err(format!("the value of {name} holds a NUL or is longer than 128K"));
    }
    Ok(())
}

/// The stage somebody most likely meant by `name`.
pub(crate) fn nearest_stage(name: &str, stages: &[Stage]) -> Option<String> {
    nearest(name, stages.iter().map(|stage| stage.name.as_str())).map(str::to_owned)
}
