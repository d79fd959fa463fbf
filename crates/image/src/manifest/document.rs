//! Reading a TOML document so that every complaint names its line.

use kiln_model::scenario::nearest;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::ManifestError;

type RawTable<'i> = DeTable<'i>;
type RawValue<'i> = Spanned<DeValue<'i>>;

/// The document a table or value comes from: its name and text, to say where something stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Document<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

/// One table whose keys are all known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    document: Document<'a>,
    table: &'a RawTable<'a>,
    at: usize,
}

impl<'a> Document<'a> {
    pub(super) fn parse(self) -> Result<Spanned<RawTable<'a>>, ManifestError> {
        DeTable::parse(self.text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            self.wrong(at, error.message().to_owned())
        })
    }

    pub(super) fn wrong(self, at: usize, what: String) -> ManifestError {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        ManifestError::Wrong { file: self.name.to_owned(), line, what }
    }

    /// Wraps a table after checking that it has no key but these.
    pub(super) fn table(
        self,
        table: &'a RawTable<'a>,
        at: usize,
        what: &str,
        known: &[&str],
    ) -> Result<Table<'a>, ManifestError> {
        for (key, _) in table.iter() {
            let name: &DeString<'_> = key.get_ref();
            if !known.contains(&name.as_ref()) {
                let hint = match nearest(name, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("it can have {}", known.join(", ")),
                };
                let shown: String = name.chars().take(80).collect();
                let what = format!("unknown key `{}` in {what}: {hint}", shown.escape_debug());
                return Err(self.wrong(key.span().start, what));
            }
        }
        Ok(Table { document: self, table, at })
    }
}

impl<'a> Table<'a> {
    fn get(&self, key: &str) -> Option<&'a RawValue<'a>> {
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// Complains about the value of `key`, or about the table where it has none.
    pub(super) fn wrong(&self, key: &str, what: String) -> ManifestError {
        let at = self.get(key).map_or(self.at, |value| value.span().start);
        self.document.wrong(at, what)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ManifestError> {
        self.get(key).map(|value| self.as_text(key, value)).transpose()
    }

    pub(super) fn required_text(&self, key: &str, what: &str) -> Result<&'a str, ManifestError> {
        self.text(key)?.ok_or_else(|| self.wrong(key, format!("{what} needs `{key}`")))
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, ManifestError> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value.get_ref().as_bool().ok_or_else(|| {
                self.wrong(key, format!("`{key}` is true or false, not {}", kind(value)))
            }),
        }
    }

    /// The text items of an array, each with where it stands.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<(usize, &'a str)>, ManifestError> {
        self.items(key)?.map(|item| Ok((item.span().start, self.as_text(key, item)?))).collect()
    }

    /// The tables of an array of tables.
    pub(super) fn tables(
        &self,
        key: &str,
        what: &str,
        known: &[&str],
    ) -> Result<Vec<Table<'a>>, ManifestError> {
        self.items(key)?
            .map(|item| {
                let start = item.span().start;
                let table = item.get_ref().as_table().ok_or_else(|| {
                    let first = known.first().unwrap_or(&"path");
                    let kind = kind(item);
                    let what =
                        format!("`{key}` holds tables such as {{ {first} = … }}, not {kind}");
                    self.document.wrong(start, what)
                })?;
                self.document.table(table, start, what, known)
            })
            .collect()
    }

    fn items(&self, key: &str) -> Result<impl Iterator<Item = &'a RawValue<'a>>, ManifestError> {
        let array = match self.get(key) {
            None => None,
            Some(value) => Some(value.get_ref().as_array().ok_or_else(|| {
                self.wrong(key, format!("`{key}` is an array, not {}", kind(value)))
            })?),
        };
        Ok(array.into_iter().flat_map(|array| array.iter()))
    }

    fn as_text(&self, key: &str, value: &'a RawValue<'a>) -> Result<&'a str, ManifestError> {
        value.get_ref().as_str().ok_or_else(|| {
            self.document
                .wrong(value.span().start, format!("`{key}` takes text, not {}", kind(value)))
        })
    }

    pub(super) fn at(&self, position: usize, what: String) -> ManifestError {
        self.document.wrong(position, what)
    }
}

fn kind(value: &RawValue<'_>) -> String {
    let kind = value.get_ref().type_str();
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {kind}")
}
