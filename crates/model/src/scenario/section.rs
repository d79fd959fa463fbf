//! A TOML table with a memory of where it stood: every value is taken with its line, unknown keys are
//! refused at once.

use std::fmt::Display;
use std::ops::Range;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Problem, ScenarioError};
use super::nearest;

/// A parsed document and the starts of its lines.
pub(super) struct Document<'t> {
    table: Spanned<DeTable<'t>>,
    line_starts: Vec<usize>,
}

/// One table of it.
pub(super) struct Section<'d, 't> {
    document: &'d Document<'t>,
    table: &'d DeTable<'t>,
    /// `stages[2].`, for messages; empty for the root.
    prefix: String,
    span: Range<usize>,
}

/// A value and its line.
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) line: usize,
}

impl<'t> Document<'t> {
    pub(super) fn parse(text: &'t str) -> Result<Document<'t>, ScenarioError> {
        let line_starts: Vec<usize> = std::iter::once(0)
            .chain(
                text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1),
            )
            .collect();
        match DeTable::parse(text) {
            Ok(table) => Ok(Document { table, line_starts }),
            Err(error) => {
                let line = line_at(&line_starts, error.span().map_or(0, |span| span.start));
                let message = error.message().lines().collect::<Vec<_>>().join("; ");
                Err(ScenarioError { line, problem: Problem::Toml { message } })
            }
        }
    }

    pub(super) fn root(&self, known: &[&str]) -> Result<Section<'_, 't>, ScenarioError> {
        let section = Section {
            document: self,
            table: self.table.get_ref(),
            prefix: String::new(),
            span: 0..0,
        };
        section.refuse_unknown(known)?;
        Ok(section)
    }

    fn line(&self, span: &Range<usize>) -> usize {
        line_at(&self.line_starts, span.start)
    }
}

fn line_at(line_starts: &[usize], offset: usize) -> usize {
    line_starts.partition_point(|start| *start <= offset)
}

impl<'d, 't> Section<'d, 't> {
    fn refuse_unknown(&self, known: &[&str]) -> Result<(), ScenarioError> {
        // The table is sorted by name; the first stranger in the order of the file is the one to name.
        let stranger = self
            .table
            .keys()
            .filter(|key| !known.contains(&key.get_ref().as_ref()))
            .min_by_key(|key| key.span().start);
        let Some(key) = stranger else { return Ok(()) };
        let name = key.get_ref().as_ref();
        Err(ScenarioError {
            line: self.document.line(&key.span()),
            problem: Problem::UnknownKey {
                key: self.path(&shortened(name)),
                nearest: nearest(name, known.iter().copied()).map(str::to_owned),
                known: known.iter().map(|&key| key.to_owned()).collect(),
            },
        })
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn value(&self, key: &str) -> Option<&'d Spanned<DeValue<'t>>> {
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// Line of a key, or of the table where the key is absent.
    pub(super) fn line_of(&self, key: &str) -> usize {
        let found = self.table.keys().find(|name| name.get_ref() == key);
        let span = found.map_or_else(|| self.span.clone(), |name| name.span());
        self.document.line(&span)
    }

    /// Line of the table itself.
    pub(super) fn line(&self) -> usize {
        self.document.line(&self.span)
    }

    pub(super) fn value_error(&self, key: &str, why: impl Display) -> ScenarioError {
        let problem = Problem::Value { key: self.path(key), why: why.to_string() };
        ScenarioError { line: self.line_of(key), problem }
    }

    pub(super) fn missing(&self, key: &str, why: impl Display) -> ScenarioError {
        let problem = Problem::Missing { key: self.path(key), why: why.to_string() };
        ScenarioError { line: self.document.line(&self.span), problem }
    }

    fn kind_error(
        &self,
        key: &str,
        wanted: &'static str,
        found: &Spanned<DeValue<'t>>,
    ) -> ScenarioError {
        let problem = Problem::Kind { key: self.path(key), wanted, found: kind(found.get_ref()) };
        ScenarioError { line: self.document.line(&found.span()), problem }
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<Located<String>>, ScenarioError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.get_ref() {
            DeValue::String(text) => Ok(Some(Located {
                value: text.to_string(),
                line: self.document.line(&value.span()),
            })),
            _ => Err(self.kind_error(key, "a string", value)),
        }
    }

    pub(super) fn required_string(&self, key: &str) -> Result<Located<String>, ScenarioError> {
        self.string(key)?.ok_or_else(|| self.missing(key, "every scenario and stage needs it"))
    }

    /// A string or integer that reads as `T`.
    pub(super) fn parsed<T: FromStr<Err: Display>>(
        &self,
        key: &str,
    ) -> Result<Option<T>, ScenarioError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().replace('_', ""),
            _ => return Err(self.kind_error(key, "a string", value)),
        };
        text.parse().map(Some).map_err(|error| self.value_error(key, error))
    }

    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>, ScenarioError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let DeValue::Integer(number) = value.get_ref() else {
            return Err(self.kind_error(key, "a whole number", value));
        };
        i64::from_str_radix(number.as_str(), number.radix())
            .map(Some)
            .map_err(|_| self.value_error(key, "the number is too large"))
    }

    /// A whole number from 1 to `most`; `rule` says so.
    pub(super) fn counted(
        &self,
        key: &str,
        most: usize,
        rule: &str,
    ) -> Result<Option<usize>, ScenarioError> {
        let Some(number) = self.integer(key)? else { return Ok(None) };
        let count = usize::try_from(number).ok().filter(|count| (1..=most).contains(count));
        count.map(Some).ok_or_else(|| self.value_error(key, rule))
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, ScenarioError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.get_ref() {
            DeValue::Boolean(flag) => Ok(Some(*flag)),
            _ => Err(self.kind_error(key, "true or false", value)),
        }
    }

    /// A list of strings; empty where the key is absent.
    pub(super) fn strings(&self, key: &str) -> Result<Vec<String>, ScenarioError> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let DeValue::Array(items) = value.get_ref() else {
            return Err(self.kind_error(key, "a list of strings", value));
        };
        items
            .iter()
            .map(|item| match item.get_ref() {
                DeValue::String(text) => Ok(text.to_string()),
                _ => Err(self.kind_error(key, "a list of strings", item)),
            })
            .collect()
    }

    /// A table of strings, sorted by key; empty where the key is absent.
    pub(super) fn string_table(
        &self,
        key: &str,
    ) -> Result<Vec<Located<(String, String)>>, ScenarioError> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.kind_error(key, "a table of strings", value));
        };
        let mut pairs = Vec::new();
        for (name, item) in table {
            let DeValue::String(text) = item.get_ref() else {
                let path = format!("{key}.{}", shortened(name.get_ref()));
                return Err(self.kind_error(&path, "a string", item));
            };
            let line = self.document.line(&name.span());
            pairs.push(Located { value: (name.get_ref().to_string(), text.to_string()), line });
        }
        Ok(pairs)
    }

    pub(super) fn table(
        &self,
        key: &str,
        known: &[&str],
    ) -> Result<Option<Section<'d, 't>>, ScenarioError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.kind_error(key, "a table", value));
        };
        let prefix = format!("{}.", self.path(key));
        let section = Section { document: self.document, table, prefix, span: value.span() };
        section.refuse_unknown(known)?;
        Ok(Some(section))
    }

    /// `[[key]]`, in order; empty where there is none.
    pub(super) fn tables(
        &self,
        key: &str,
        known: &[&str],
    ) -> Result<Vec<Section<'d, 't>>, ScenarioError> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let DeValue::Array(items) = value.get_ref() else {
            return Err(self.kind_error(key, "a list of tables (`[[…]]`)", value));
        };
        let mut sections = Vec::new();
        for (number, item) in items.iter().enumerate() {
            let DeValue::Table(table) = item.get_ref() else {
                return Err(self.kind_error(key, "a list of tables (`[[…]]`)", item));
            };
            let prefix = format!("{}[{}].", self.path(key), number + 1);
            let section = Section { document: self.document, table, prefix, span: item.span() };
            section.refuse_unknown(known)?;
            sections.push(section);
        }
        Ok(sections)
    }

    /// Refuses a value that is no table, without looking into it.
    pub(super) fn expect_table(&self, key: &str) -> Result<(), ScenarioError> {
        match self.value(key) {
            Some(value) if !matches!(value.get_ref(), DeValue::Table(_)) => {
                Err(self.kind_error(key, "a table", value))
            }
            _ => Ok(()),
        }
    }
}

/// A hostile key can be as long as the document; a message need not be.
fn shortened(key: &str) -> String {
    key.chars().take(64).collect()
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
