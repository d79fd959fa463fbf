//! Values of the configuration: written as text, checked once against the kind of their key.

use std::path::{Path, PathBuf};

use kiln_model::scenario::{CpuCount, MachineCount, MemorySize, TimeLimit, nearest};

use super::keys::Kind;

/// A checked value. Sizes, numbers and times keep the text they were written with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Text, paths, sizes, times, words.
    Text(String),
    /// Lists.
    Texts(Vec<String>),
    /// Switches.
    Switch(bool),
}

impl Value {
    /// Reads a value from one text (a flag, a variable, a default) or says the rule it breaks. Relative paths
    /// start at `folder`.
    pub(crate) fn from_text(kind: Kind, text: &str, folder: &Path) -> Result<Value, String> {
        let whole = || Value::Text(text.to_owned());
        let shown = || text.chars().take(100).collect::<String>();
        match kind {
            Kind::Memory => text.parse::<MemorySize>().map(|_| whole()).map_err(|e| e.to_string()),
            Kind::Cpus => text.parse::<CpuCount>().map(|_| whole()).map_err(|e| e.to_string()),
            Kind::Machines => {
                text.parse::<MachineCount>().map(|_| whole()).map_err(|e| e.to_string())
            }
            Kind::Time => text.parse::<TimeLimit>().map(|_| whole()).map_err(|e| e.to_string()),
            Kind::Switch => match text {
                "true" | "1" | "yes" => Ok(Value::Switch(true)),
                "false" | "0" | "no" => Ok(Value::Switch(false)),
                _ => Err(format!("{:?} is neither true nor false", shown())),
            },
            Kind::Texts => {
                Ok(Value::Texts(text.split_ascii_whitespace().map(str::to_owned).collect()))
            }
            Kind::Choice(words) if words.contains(&text) => Ok(whole()),
            Kind::Choice(words) => {
                let meant = nearest(text, words.iter().copied())
                    .map(|word| format!("; did you mean {word}?"))
                    .unwrap_or_default();
                Err(format!("{:?} is none of {}{meant}", shown(), words.join(", ")))
            }
            Kind::Text | Kind::Path | Kind::Kernel if text.is_empty() => {
                Err("an empty text says nothing".to_owned())
            }
            Kind::Text => Ok(whole()),
            Kind::Path => Ok(Value::Text(absolute(text, folder))),
            Kind::Kernel if text.contains('/') || matches!(text, "." | ".." | "~") => {
                Ok(Value::Text(absolute(text, folder)))
            }
            Kind::Kernel => Ok(whole()),
        }
    }

    /// For a person, and for pasting into a file.
    pub(crate) fn to_toml(&self) -> String {
        let quoted = |text: &String| toml::Value::String(text.clone()).to_string();
        match self {
            Value::Text(text) => quoted(text),
            Value::Texts(texts) => {
                format!("[{}]", texts.iter().map(quoted).collect::<Vec<_>>().join(", "))
            }
            Value::Switch(on) => on.to_string(),
        }
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Text(text) => text.as_str().into(),
            Value::Texts(texts) => texts.as_slice().into(),
            Value::Switch(on) => (*on).into(),
        }
    }
}

fn absolute(text: &str, folder: &Path) -> String {
    let path = match (text.strip_prefix("~/"), text) {
        (Some(rest), _) => home().map_or_else(|| PathBuf::from(text), |home| home.join(rest)),
        (None, "~") => home().unwrap_or_else(|| PathBuf::from(text)),
        _ => folder.join(text),
    };
    let tidy: PathBuf = path.components().collect();
    tidy.to_string_lossy().into_owned()
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_with_a_slash_is_a_path_and_any_other_a_release() {
        let read = |text| Value::from_text(Kind::Kernel, text, Path::new("/project"));
        assert_eq!(read("6.12.1"), Ok(Value::Text("6.12.1".into())));
        assert_eq!(read("./linux"), Ok(Value::Text("/project/linux".into())));
        assert_eq!(read("/l"), Ok(Value::Text("/l".into())));
        assert!(read("").is_err());
    }
}
