//! What every command starts from: the folders, the configuration and the way of writing.

use std::path::PathBuf;

use crate::arguments::{ColorChoice, Format, GlobalArgs};
use crate::config::{Config, ConfigError, keys};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::home::{Home, project_file};
use crate::terminal;

/// One invocation of `kiln`.
#[derive(Debug)]
pub(crate) struct Session {
    /// Where things are kept.
    pub(crate) home: Home,
    /// Every value in force.
    pub(crate) config: Config,
    /// The project's configuration file, if there is one.
    pub(crate) project: Option<PathBuf>,
    /// The current folder, where relative paths on the command line start.
    pub(crate) folder: PathBuf,
    /// How results are written.
    pub(crate) format: Format,
}

impl Session {
    /// Reads the configuration and decides about colours.
    pub(crate) fn start(global: &GlobalArgs) -> Result<Session, Failure> {
        if let Some(choice) = global.color {
            terminal::choose_color(choice);
        }
        let home = Home::find()?;
        let folder = std::env::current_dir().map_err(|error| {
            Failure::from(anyhow::Error::new(error).context("the current folder is not there"))
                .with_exit(Exit::Setup)
                .hint("cd somewhere that exists")
        })?;
        let project = match &global.config {
            Some(file) if file.is_file() => Some(folder.join(file)),
            Some(file) => {
                let text = format!("configuration {} is not there", file.display());
                return Err(Failure::new(Exit::Usage, text)
                    .hint("`kiln config path` names the files that are read"));
            }
            None => project_file(&folder),
        };
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        let variables: Vec<(String, String)> =
            variables.filter(|(name, _)| name.starts_with("KILN_")).collect();
        warn_of_unknown(&variables);
        let config = Config::load(&home.config_file(), project.as_deref(), variables, &folder)
            .map_err(refused)?;
        let format = match (global.format, config.text("output.format")) {
            (Some(format), _) => format,
            (None, Some("json")) => Format::Json,
            (None, _) => Format::Text,
        };
        // Chosen only once: a flag has already decided.
        terminal::choose_color(match config.text("output.color") {
            Some("always") => ColorChoice::Always,
            Some("never") => ColorChoice::Never,
            _ => ColorChoice::Auto,
        });
        let mut session = Session { home, config, project, folder, format };
        let format = global.format.map(|format| match format {
            Format::Text => "text",
            Format::Json => "json",
        });
        session.flag("output.format", format)?;
        let color = global.color.map(|color| match color {
            ColorChoice::Auto => "auto",
            ColorChoice::Always => "always",
            ColorChoice::Never => "never",
        });
        session.flag("output.color", color)?;
        Ok(session)
    }

    /// Puts what a flag says in force.
    pub(crate) fn flag(&mut self, key: &'static str, text: Option<&str>) -> Result<(), Failure> {
        self.config.set_flag(key, text, &self.folder).map_err(refused)
    }

    /// Whether results are written for programs.
    pub(crate) fn json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes a JSON document to stdout.
    pub(crate) fn out_json(&self, value: &impl serde::Serialize) -> Result<(), Failure> {
        terminal::out_line(&serde_json::to_string_pretty(value)?)
    }
}

fn refused(error: ConfigError) -> Failure {
    let exit = match error {
        ConfigError::Unreadable { .. } => Exit::Setup,
        _ => Exit::Usage,
    };
    Failure::from(error)
        .with_exit(exit)
        .hint("`kiln config show --origin` shows every value and where it comes from")
}

/// A misspelt variable would be ignored in silence; another program's must not stop us.
fn warn_of_unknown(variables: &[(String, String)]) {
    let known = || {
        let keys = keys::KEYS.iter().map(|key| key.variable);
        keys.chain(keys::OTHER_VARIABLES.iter().map(|(name, _)| *name))
    };
    for (name, _) in variables {
        let of_benchmarks = name.starts_with("KILN_BENCH_");
        if !of_benchmarks && !known().any(|known| known == name) {
            let meant = kiln_model::scenario::nearest(name, known());
            let meant = meant.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            let shown = crate::hostile::line(name);
            terminal::say(&format!("warning: ${shown} is not a variable of Kiln's{meant}"));
        }
    }
}
