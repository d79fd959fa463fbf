//! What a module says about itself: the `.modinfo` section of its ELF file, `key=value` strings each
//! ended by a NUL. `modules.builtin.modinfo` holds the same for built-in modules, as `name.key=value`.

use super::normalise;

/// The fields of a `.modinfo` section, in order. Strings without `=`, or not UTF-8, are skipped.
pub fn fields(section: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    section
        .split(|&byte| byte == 0)
        .filter_map(|field| std::str::from_utf8(field).ok())
        .filter_map(|field| field.split_once('='))
        .filter(|(key, _)| !key.is_empty())
}

/// The fields of a `modules.builtin.modinfo` file: module, key, value.
pub fn builtin_fields(file: &[u8]) -> impl Iterator<Item = (&str, &str, &str)> {
    fields(file).filter_map(|(key, value)| {
        let (name, key) = key.split_once('.')?;
        (!name.is_empty()).then_some((name, key, value))
    })
}

/// The fields which decide what must be loaded with a module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModInfo {
    /// What the module calls itself, with `_`.
    pub name: Option<String>,
    /// Names it cannot be loaded without.
    pub depends: Vec<String>,
    /// Patterns that mean it.
    pub aliases: Vec<String>,
    /// `pre: a b post: c`, one string a declaration.
    pub softdeps: Vec<String>,
    /// Names it may ask for later.
    pub weakdeps: Vec<String>,
    /// Files it may ask user space for, relative to a firmware directory.
    pub firmware: Vec<String>,
}

impl ModInfo {
    /// Sorts the fields of a `.modinfo` section. Words that could not stand on one line of an index
    /// file (they hold a control character) are left out.
    pub fn parse(section: &[u8]) -> ModInfo {
        let mut info = ModInfo::default();
        for (key, value) in fields(section) {
            let value = value.trim();
            if value.is_empty() || value.chars().any(char::is_control) {
                continue;
            }
            match key {
                "name" => info.name = Some(normalise(value).into_owned()),
                "depends" => {
                    let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
                    info.depends.extend(names.map(|name| normalise(name).into_owned()));
                }
                "alias" if !value.contains(' ') => info.aliases.push(normalise(value).into_owned()),
                "softdep" => info.softdeps.push(value.to_owned()),
                "weakdep" => info.weakdeps.extend(value.split_whitespace().map(str::to_owned)),
                "firmware" => info.firmware.push(value.to_owned()),
                _ => {}
            }
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_btrfs_are_sorted() {
        let section = b"softdep=pre: crc32c\0softdep=pre: blake2b-256\0license=GPL\0\
            alias=devname:btrfs-control\0alias=fs-btrfs\0depends=libcrc32c,raid6-pq,xor\0\
            retpoline=Y\0name=btrfs\0weakdep=a b\0firmware=x/y.bin\0junk\0=odd\0depends=\0";
        let info = ModInfo::parse(section);
        assert_eq!(info.name.as_deref(), Some("btrfs"));
        assert_eq!(info.depends, ["libcrc32c", "raid6_pq", "xor"]);
        assert_eq!(info.aliases, ["devname:btrfs_control", "fs_btrfs"]);
        assert_eq!(info.softdeps, ["pre: crc32c", "pre: blake2b-256"]);
        assert_eq!(info.weakdeps, ["a", "b"]);
        assert_eq!(info.firmware, ["x/y.bin"]);
    }

    #[test]
    fn a_field_cannot_smuggle_a_line_into_the_index() {
        let info = ModInfo::parse(b"alias=x\nalias * evil\0firmware=a\n/etc/shadow\0");
        assert_eq!(info, ModInfo::default());
    }

    #[test]
    fn builtin_fields_carry_their_module() {
        let file = b"virtio_pci.license=GPL\0virtio_pci.alias=pci:v00001AF4d*\0odd\0.x=1\0";
        let fields: Vec<_> = builtin_fields(file).collect();
        assert_eq!(
            fields,
            [("virtio_pci", "license", "GPL"), ("virtio_pci", "alias", "pci:v00001AF4d*")]
        );
    }
}
