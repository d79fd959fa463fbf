//! The configuration: defaults, the user's file, the project's, the scenario, `KILN_*` variables and flags,
//! each stronger than the one before, each value remembering where it came from.

pub(crate) mod keys;
mod layers;
mod schema;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use kiln_model::scenario::MachineWish;

pub(crate) use layers::ConfigError;
pub(crate) use schema::schema;
pub(crate) use value::Value;

use keys::{KEYS, Key};

/// Where a value came from; a later variant is stronger.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// Built in.
    Default,
    /// The user's file.
    User(PathBuf, usize),
    /// The project's file.
    Project(PathBuf, usize),
    /// An environment variable.
    Variable(&'static str),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::User(path, line) | Origin::Project(path, line) => {
                write!(f, "{}:{line}", path.display())
            }
            Origin::Variable(name) => write!(f, "${name}"),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

impl Origin {
    fn rank(&self) -> u8 {
        match self {
            Origin::Default => 0,
            Origin::User(..) => 1,
            Origin::Project(..) => 2,
            Origin::Variable(_) => 4,
            Origin::Flag(_) => 5,
        }
    }
}

/// One value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// What.
    pub(crate) value: Value,
    /// Whose word it is.
    pub(crate) origin: Origin,
}

/// Every value that was said, of each key from the weakest to the strongest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    settings: BTreeMap<&'static str, Vec<Setting>>,
}

/// On which side of the scenario a wish was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// By the user's or the project's file: the scenario wins.
    Below,
    /// By a variable or a flag: these win.
    Above,
}

impl Config {
    /// The built-in values.
    pub(crate) fn defaults() -> Config {
        let mut config = Config::default();
        for key in KEYS {
            let value = key.default.map(|d| Value::from_text(key.kind, d, Path::new("/")));
            if let Some(Ok(value)) = value {
                config.set(key, value, Origin::Default);
            }
        }
        config
    }

    /// Defaults, both files and the environment. A file that does not exist says nothing.
    pub(crate) fn load(
        user: &Path,
        project: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        folder: &Path,
    ) -> Result<Config, ConfigError> {
        let mut config = Config::defaults();
        layers::read_file(&mut config, user, Origin::User)?;
        if let Some(project) = project {
            layers::read_file(&mut config, project, Origin::Project)?;
        }
        layers::read_variables(&mut config, variables, folder)?;
        Ok(config)
    }

    /// Says a value; it is in force unless a stronger word has been said.
    pub(crate) fn set(&mut self, key: &'static Key, value: Value, origin: Origin) {
        let said = self.settings.entry(key.name).or_default();
        let at = said.iter().take_while(|setting| setting.origin.rank() <= origin.rank()).count();
        said.insert(at, Setting { value, origin });
    }

    /// Puts what a flag says in force.
    pub(crate) fn set_flag(
        &mut self,
        name: &'static str,
        text: Option<&str>,
        folder: &Path,
    ) -> Result<(), ConfigError> {
        let (Some(key), Some(text)) = (keys::find(name), text) else { return Ok(()) };
        let origin = Origin::Flag(key.flag.unwrap_or(key.name));
        let value = Value::from_text(key.kind, text, folder).map_err(|rule| {
            ConfigError::Value { origin: origin.to_string(), key: key.name, rule }
        })?;
        self.set(key, value, origin);
        Ok(())
    }

    /// Puts a list of texts that a flag says in force, if there are any.
    pub(crate) fn set_texts(&mut self, name: &str, texts: &[String]) {
        if let Some(key) = keys::find(name).filter(|_| !texts.is_empty()) {
            let origin = Origin::Flag(key.flag.unwrap_or(key.name));
            self.set(key, Value::Texts(texts.to_vec()), origin);
        }
    }

    /// Every key with its value, if it has one, in the order of the documentation.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static Key, Option<&Setting>)> {
        KEYS.iter().map(|key| (key, self.strongest(key.name)))
    }

    /// The text of a key.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.strongest(name).map(|setting| &setting.value) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The path of a key.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    fn strongest(&self, name: &str) -> Option<&Setting> {
        self.settings.get(name)?.last()
    }

    /// What was wished for the machine on one side of the scenario. Values were checked when they were read, so that
    /// parsing them again cannot fail.
    pub(crate) fn machine(&self, side: Side) -> MachineWish {
        let said = |name: &str| {
            let all = self.settings.get(name).map_or(&[][..], Vec::as_slice);
            all.iter().filter(move |setting| match side {
                Side::Below => (1..=2).contains(&setting.origin.rank()),
                Side::Above => setting.origin.rank() > 2,
            })
        };
        let text = |name: &str| match said(name).next_back().map(|setting| &setting.value) {
            Some(Value::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        let parameters = said("vm.kernel_parameters").flat_map(|setting| match &setting.value {
            Value::Texts(texts) => texts.clone(),
            _ => Vec::new(),
        });
        MachineWish {
            memory: text("vm.memory").and_then(|text| text.parse().ok()),
            cpus: text("vm.cpus").and_then(|text| text.parse().ok()),
            machines: text("vm.machines").and_then(|text| text.parse().ok()),
            acceleration: text("vm.acceleration").and_then(|text| text.parse().ok()),
            boot_timeout: text("vm.boot_timeout").and_then(|text| text.parse().ok()),
            hang_timeout: text("vm.hang_timeout").and_then(|text| text.parse().ok()),
            kernel_parameters: parameters.collect(),
            fast: said("vm.fast").next_back().map(|s| s.value == Value::Switch(true)),
            root: text("vm.root").and_then(|text| text.parse().ok()),
            restore: text("vm.restore").and_then(|text| text.parse().ok()),
            qemu: text("vm.qemu").map(PathBuf::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_is_stronger_than_the_one_before_whatever_the_order_of_arrival() {
        let key = keys::find("vm.memory").unwrap();
        let size = |text: &str| Value::Text(text.into());
        let mut config = Config::defaults();
        config.set(key, size("5G"), Origin::Flag("--memory"));
        config.set(key, size("4G"), Origin::Variable("KILN_MEMORY"));
        config.set(key, size("2G"), Origin::Project("p".into(), 1));
        config.set(key, size("1G"), Origin::User("u".into(), 1));
        assert_eq!(config.text("vm.memory"), Some("5G"));
        let memory = |side| config.machine(side).memory.map(|memory| memory.get().get() >> 30);
        assert_eq!(memory(Side::Below), Some(2));
        assert_eq!(memory(Side::Above), Some(5));
    }

    #[test]
    fn what_nobody_said_is_left_to_the_scenario() {
        let config = Config::defaults();
        assert_eq!(config.text("vm.acceleration"), Some("auto"));
        assert_eq!(config.machine(Side::Below), MachineWish::default());
        assert_eq!(config.machine(Side::Above), MachineWish::default());
    }

    #[test]
    fn kernel_parameters_of_all_layers_add_up_the_strongest_last() {
        let key = keys::find("vm.kernel_parameters").unwrap();
        let mut config = Config::defaults();
        config.set_texts("vm.kernel_parameters", &["a=2".into()]);
        let texts = Value::Texts(vec!["a=1".into()]);
        config.set(key, texts, Origin::Variable("KILN_KERNEL_PARAMETERS"));
        assert_eq!(config.machine(Side::Above).kernel_parameters, ["a=1", "a=2"]);
    }
}
