//! The configuration: defaults, the user's file, the project's, the scenario, `KILN_*` variables and flags,
//! each stronger than the one before, each value remembering where it came from.

pub(crate) mod keys;
mod layers;
mod schema;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use kiln_model::job::AccelerationChoice;
use kiln_model::scenario::MachineWish;

pub(crate) use layers::{ConfigError, line_of};
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
    /// The scenario.
    Scenario(String),
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
            Origin::Scenario(name) => write!(f, "scenario {name}"),
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
            Origin::Scenario(_) => 3,
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

/// Every value in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    settings: BTreeMap<&'static str, Setting>,
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

    /// Puts a value in force unless a stronger word has been said.
    pub(crate) fn set(&mut self, key: &'static Key, value: Value, origin: Origin) {
        let stronger = |setting: &Setting| setting.origin.rank() > origin.rank();
        if !self.settings.get(key.name).is_some_and(stronger) {
            self.settings.insert(key.name, Setting { value, origin });
        }
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

    /// Adds texts to a list, after those already there.
    pub(crate) fn extend(&mut self, name: &'static str, more: &[String], origin: Origin) {
        let Some(key) = keys::find(name).filter(|_| !more.is_empty()) else { return };
        let mut all = self.texts(name).to_vec();
        all.extend_from_slice(more);
        self.settings.insert(key.name, Setting { value: Value::Texts(all), origin });
    }

    /// Every key with its value, if it has one, in the order of the documentation.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static Key, Option<&Setting>)> {
        KEYS.iter().map(|key| (key, self.settings.get(key.name)))
    }

    /// The text of a key.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.settings.get(name).map(|setting| &setting.value) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The path of a key.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    /// Whether a switch is on.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        matches!(self.settings.get(name).map(|s| &s.value), Some(Value::Switch(true)))
    }

    /// The texts of a list.
    pub(crate) fn texts(&self, name: &str) -> &[String] {
        match self.settings.get(name).map(|setting| &setting.value) {
            Some(Value::Texts(texts)) => texts,
            _ => &[],
        }
    }

    /// What the configuration wishes for the machine. The scenario's own wishes are one layer of it, see
    /// [`Config::add_scenario`]. Values were checked when they were read, so that parsing them again cannot fail.
    pub(crate) fn machine(&self) -> MachineWish {
        let text = |name: &str| self.text(name);
        MachineWish {
            memory: text("vm.memory").and_then(|text| text.parse().ok()),
            cpus: text("vm.cpus").and_then(|text| text.parse().ok()),
            acceleration: text("vm.acceleration").and_then(|text| text.parse().ok()),
            boot_timeout: text("vm.boot_timeout").and_then(|text| text.parse().ok()),
            hang_timeout: text("vm.hang_timeout").and_then(|text| text.parse().ok()),
            kernel_parameters: self.texts("vm.kernel_parameters").to_vec(),
            fast: Some(self.is_on("vm.fast")),
            qemu: self.path("vm.qemu"),
        }
    }

    /// Puts a scenario's wishes in force, below variables and flags; kernel parameters add up.
    pub(crate) fn add_scenario(&mut self, scenario: &str, wish: &MachineWish) {
        let origin = || Origin::Scenario(scenario.to_owned());
        let mut put = |name: &str, value: Option<Value>| {
            if let (Some(key), Some(value)) = (keys::find(name), value) {
                self.set(key, value, origin());
            }
        };
        let size = |bytes: u64| Value::Text(format!("{}M", bytes >> 20));
        let time = |millis: u64| Value::Text(format!("{millis}ms"));
        put("vm.memory", wish.memory.map(|memory| size(memory.get().get())));
        put("vm.cpus", wish.cpus.map(|cpus| Value::Text(cpus.get().to_string())));
        let word = |choice| match choice {
            AccelerationChoice::Auto => "auto",
            AccelerationChoice::Kvm => "kvm",
            AccelerationChoice::Tcg => "tcg",
        };
        put(
            "vm.acceleration",
            wish.acceleration.map(|choice| Value::Text(word(choice).to_owned())),
        );
        put("vm.boot_timeout", wish.boot_timeout.map(|limit| time(limit.as_millis())));
        put("vm.hang_timeout", wish.hang_timeout.map(|limit| time(limit.as_millis())));
        put("vm.fast", wish.fast.map(Value::Switch));
        let weaker = wish.kernel_parameters.iter().chain(self.texts("vm.kernel_parameters"));
        let all: Vec<String> = weaker.cloned().collect();
        if let Some(key) = keys::find("vm.kernel_parameters").filter(|_| !all.is_empty()) {
            let origin = self.settings.get(key.name).map_or_else(origin, |s| s.origin.clone());
            self.settings.insert(key.name, Setting { value: Value::Texts(all), origin });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(config: &Config) -> Option<u64> {
        config.machine().memory.map(|memory| memory.get().get() >> 30)
    }

    #[test]
    fn each_layer_is_stronger_than_the_one_before_whatever_the_order_of_arrival() {
        let key = keys::find("vm.memory").unwrap();
        let size = |text: &str| Value::Text(text.into());
        let wish = MachineWish { memory: "3G".parse().ok(), ..MachineWish::default() };
        let mut config = Config::defaults();
        config.set(key, size("5G"), Origin::Flag("--memory"));
        config.set(key, size("4G"), Origin::Variable("KILN_MEMORY"));
        config.add_scenario("x", &wish);
        assert_eq!(memory(&config), Some(5));

        let mut config = Config::defaults();
        config.set(key, size("1G"), Origin::User("u".into(), 1));
        config.set(key, size("2G"), Origin::Project("p".into(), 1));
        assert_eq!(memory(&config), Some(2));
        config.add_scenario("x", &wish);
        assert_eq!(memory(&config), Some(3));
    }

    #[test]
    fn kernel_parameters_of_all_layers_add_up_the_strongest_last() {
        let mut config = Config::defaults();
        config.extend("vm.kernel_parameters", &["a=2".into()], Origin::Flag("--parameter"));
        let wish = MachineWish { kernel_parameters: vec!["a=1".into()], ..MachineWish::default() };
        config.add_scenario("x", &wish);
        assert_eq!(config.machine().kernel_parameters, ["a=1", "a=2"]);
    }
}
