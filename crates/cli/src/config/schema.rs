//! The configuration as a JSON schema, for editors.

use serde_json::{Map, Value, json};

use super::keys::{KEYS, Kind};

/// The schema (draft 2020-12) of `config.toml` and `kiln.toml`.
pub(crate) fn schema() -> Value {
    let mut tables: Map<String, Value> = Map::new();
    for key in KEYS {
        let Some((table, name)) = key.name.split_once('.') else { continue };
        let mut entry = match key.kind {
            Kind::Cpus | Kind::Machines => json!({"type": "integer", "minimum": 1, "maximum": 64}),
            Kind::Choice(words) => json!({"enum": words}),
            Kind::Texts => json!({"type": "array", "items": {"type": "string"}}),
            Kind::Switch => json!({"type": "boolean"}),
            Kind::Text | Kind::Path | Kind::Kernel => json!({"type": "string", "minLength": 1}),
            Kind::Memory => json!({"type": "string", "pattern": "^[0-9]+ *[KMGT]?(i?B)?$"}),
            Kind::Time => json!({"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"}),
        };
        entry["description"] = key.about.into();
        if let Some(default) = key.default {
            entry["default"] = match key.kind {
                Kind::Switch => (default == "true").into(),
                _ => default.into(),
            };
        }
        let table = tables.entry(table).or_insert_with(
            || json!({"type": "object", "additionalProperties": false, "properties": {}}),
        );
        table["properties"][name] = entry;
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Kiln configuration",
        "type": "object",
        "additionalProperties": false,
        "properties": tables,
    })
}
