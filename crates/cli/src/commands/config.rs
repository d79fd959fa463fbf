//! `kiln config`: the values in force, the files they come from, and the schema.

use serde_json::json;

use crate::arguments::ConfigCommand;
use crate::config::schema;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{self, Tone};

/// `kiln config`
pub(crate) fn config(session: &Session, command: &ConfigCommand) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::Show { origin } => show(session, *origin)?,
        ConfigCommand::Path => path(session)?,
        ConfigCommand::Schema => session.out_json(&schema())?,
    }
    Ok(Exit::Success)
}

fn show(session: &Session, origin: bool) -> Result<(), Failure> {
    if session.json() {
        let values = session.config.all().map(|(key, setting)| {
            let value = json!({
                "value": setting.map(|setting| setting.value.to_json()),
                "origin": setting.map(|setting| setting.origin.to_string()),
            });
            (key.name.to_owned(), value)
        });
        return session.out_json(&serde_json::Value::Object(values.collect()));
    }
    let mut section = "";
    for (key, setting) in session.config.all() {
        let (table, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if table != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            terminal::out_line(&format!(
                "{gap}{}",
                terminal::paint(Tone::Bold, &format!("[{table}]"))
            ))?;
            section = table;
        }
        // What is printed can be pasted into a file, so a key without a value is a comment.
        let line = match setting {
            Some(setting) => format!("{name} = {}", setting.value.to_toml()),
            None => format!("# {name} = {}", key.kind.describe()),
        };
        let from = match setting {
            Some(setting) if origin => {
                terminal::paint(Tone::Dim, &format!("  # {}", setting.origin))
            }
            _ => String::new(),
        };
        let text = crate::hostile::line(&line).into_owned();
        terminal::out_line(&format!("{text}{from}"))?;
    }
    Ok(())
}

fn path(session: &Session) -> Result<(), Failure> {
    let user = session.home.config_file();
    let files = [("user", Some(user)), ("project", session.project.clone())];
    if session.json() {
        let files = files.map(|(kind, path)| {
            let exists = path.as_ref().is_some_and(|path| path.is_file());
            json!({"kind": kind, "path": path, "exists": exists})
        });
        return session.out_json(&files);
    }
    for (kind, path) in files {
        let (path, note) = match path {
            Some(path) if path.is_file() => (path.display().to_string(), ""),
            Some(path) => (path.display().to_string(), "  (not there)"),
            None => ("kiln.toml".to_owned(), "  (none at or above this folder)"),
        };
        terminal::out_line(&format!("{kind:<8} {path}{note}"))?;
    }
    Ok(())
}
