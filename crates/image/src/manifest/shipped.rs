//! The manifests that ship with Kiln, embedded so that the executable needs no files beside it.

const SHIPPED: [(&str, &str); 2] = [
    ("base", include_str!("../../../../manifests/base.toml")),
    ("simple-example", include_str!("../../../../manifests/simple-example.toml")),
];

/// Their names, as `include` takes them.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|(name, _)| *name)
}

/// Finds one by name, with or without `.toml`.
pub(super) fn find(name: &str) -> Option<(&'static str, &'static str)> {
    let name = name.strip_suffix(".toml").unwrap_or(name);
    SHIPPED.iter().copied().find(|(shipped, _)| *shipped == name)
}
