//! Reading the layers: TOML files with the line of every key, and the environment.

use std::io;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use kiln_model::scenario::nearest;

use super::keys::{self, KEYS, Key, Kind};
use super::{Config, Origin, Value};

/// Larger files are no configuration.
const LARGEST_FILE: u64 = 1 << 20;

/// Why the configuration was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file is there but cannot be read.
    #[error("cannot read configuration {path}", path = path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// The file is no configuration.
    #[error("configuration {path} is larger than 1 MiB", path = path.display())]
    TooLarge { path: PathBuf },
    /// It is not TOML.
    #[error("{path}:{line}: {message}", path = path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    /// A key nobody knows.
    #[error("{path}:{line}: unknown key `{key}`{}", meant(*nearest), path = path.display())]
    UnknownKey { path: PathBuf, line: usize, key: String, nearest: Option<&'static str> },
    /// A value that breaks the rule of its key.
    #[error("{origin}: `{key}`: {rule}")]
    Value { origin: String, key: &'static str, rule: String },
}

fn meant(nearest: Option<&'static str>) -> String {
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// Reads one file into the configuration; a file that is not there says nothing.
pub(super) fn read_file(
    config: &mut Config,
    path: &Path,
    origin: impl Fn(PathBuf, usize) -> Origin,
) -> Result<(), ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
        Err(error) => return Err(unreadable(error)),
        Ok(about) if about.len() > LARGEST_FILE => {
            return Err(ConfigError::TooLarge { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    read_toml(config, path, &text, origin)
}

pub(super) fn read_toml(
    config: &mut Config,
    path: &Path,
    text: &str,
    origin: impl Fn(PathBuf, usize) -> Origin,
) -> Result<(), ConfigError> {
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| line_of(text, span.start)),
        message: error.message().to_owned(),
    })?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let unknown = |key: String, at: usize| ConfigError::UnknownKey {
        nearest: nearest(&key, names()),
        path: path.to_owned(),
        line: line_of(text, at),
        key,
    };
    for (outer, value) in table.get_ref() {
        let section = outer.get_ref().as_ref();
        let Some(inner) = value.get_ref().as_table() else {
            return Err(unknown(section.to_owned(), outer.span().start));
        };
        if !names().any(|name| name.split('.').next() == Some(section)) {
            return Err(unknown(section.to_owned(), outer.span().start));
        }
        for (name, value) in inner {
            let full = format!("{section}.{}", name.get_ref());
            let Some(key) = keys::find(&full) else {
                return Err(unknown(full, name.span().start));
            };
            let origin = origin(path.to_owned(), line_of(text, name.span().start));
            let value = from_toml(key, value.get_ref(), folder).map_err(|rule| {
                ConfigError::Value { origin: origin.to_string(), key: key.name, rule }
            })?;
            config.set(key, value, origin);
        }
    }
    Ok(())
}

fn from_toml(key: &Key, value: &DeValue<'_>, folder: &Path) -> Result<Value, String> {
    let wrong = || format!("{} is not {}", value.type_str(), key.kind.describe());
    match (key.kind, value) {
        (Kind::Cpus | Kind::Machines, DeValue::Integer(number)) => {
            let number = u64::from_str_radix(number.as_str(), number.radix());
            Value::from_text(key.kind, &number.map_err(|_| wrong())?.to_string(), folder)
        }
        (Kind::Switch, DeValue::Boolean(on)) => Ok(Value::Switch(*on)),
        (Kind::Texts, DeValue::Array(items)) => items
            .iter()
            .map(|item| item.get_ref().as_str().map(str::to_owned).ok_or_else(wrong))
            .collect::<Result<Vec<String>, String>>()
            .map(Value::Texts),
        (Kind::Switch | Kind::Texts, _) => Err(wrong()),
        (_, DeValue::String(text)) => Value::from_text(key.kind, text, folder),
        _ => Err(wrong()),
    }
}

/// Reads the variables that are configuration; others are left alone.
pub(super) fn read_variables(
    config: &mut Config,
    variables: impl IntoIterator<Item = (String, String)>,
    folder: &Path,
) -> Result<(), ConfigError> {
    for (name, text) in variables {
        let Some(key) = KEYS.iter().find(|key| key.variable == name) else { continue };
        // An empty variable is how shells and CI systems say "not set".
        if text.is_empty() {
            continue;
        }
        let value = Value::from_text(key.kind, &text, folder).map_err(|rule| {
            ConfigError::Value { origin: format!("${}", key.variable), key: key.name, rule }
        })?;
        config.set(key, value, Origin::Variable(key.variable));
    }
    Ok(())
}

/// Which line, counted from 1, the byte at `at` is on.
fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn names() -> impl Iterator<Item = &'static str> + Clone {
    KEYS.iter().map(|key| key.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let mut config = Config::defaults();
        read_toml(&mut config, Path::new("/p/kiln.toml"), text, Origin::Project)
            .map(|()| config)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_value_knows_its_line() {
        let config =
            read("# mine\n[vm]\nmemory = \"2G\"\ncpus = 0x4\n\n[run]\nkernel = \"./l\"\n").unwrap();
        let origin = |name: &str| {
            config.all().find(|(key, _)| key.name == name).unwrap().1.unwrap().origin.to_string()
        };
        assert_eq!(origin("vm.memory"), "/p/kiln.toml:3");
        assert_eq!(origin("vm.cpus"), "/p/kiln.toml:4");
        assert_eq!(origin("publish.branch"), "default");
        assert_eq!(config.text("run.kernel"), Some("/p/l"));
        assert_eq!(config.text("vm.cpus"), Some("4"));
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line_and_its_neighbour() {
        let said = |text| read(text).unwrap_err();
        assert_eq!(
            said("[vm]\nmemroy = \"2G\"\n"),
            "/p/kiln.toml:2: unknown key `vm.memroy`; did you mean `vm.memory`?"
        );
        assert_eq!(said("[wm]\n"), "/p/kiln.toml:1: unknown key `wm`");
        assert_eq!(said("\n\nx = 1"), "/p/kiln.toml:3: unknown key `x`");
    }

    #[test]
    fn a_wrong_value_is_quoted_beside_what_was_expected() {
        let said = |text| read(text).unwrap_err();
        assert!(said("[vm]\nmemory = \"lots\"").starts_with("/p/kiln.toml:2: `vm.memory`: "));
        assert!(said("[vm]\ncpus = 0").starts_with("/p/kiln.toml:2: `vm.cpus`: "));
        assert_eq!(
            said("[vm]\nmemory = 5"),
            "/p/kiln.toml:2: `vm.memory`: integer is not a size such as 512M or 2G"
        );
        assert_eq!(
            said("[vm]\nacceleration = \"kmv\""),
            "/p/kiln.toml:2: `vm.acceleration`: \"kmv\" is none of auto, kvm, tcg; did you mean kvm?"
        );
        assert!(said("[vm]\nmemory = ").starts_with("/p/kiln.toml:2: "));
        assert!(said("[vm\n").starts_with("/p/kiln.toml:1: "));
    }
}
