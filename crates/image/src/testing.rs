//! Small ELF files and host trees for tests.

use std::path::{Path, PathBuf};

/// An ELF file with a dynamic section and no code.
#[derive(Debug, Default)]
pub(crate) struct SyntheticElf {
    interpreter: Option<String>,
    needed: Vec<String>,
    runpath: Option<String>,
    rpath: Option<String>,
    machine: u16,
}

impl SyntheticElf {
    pub(crate) fn program(interpreter: &str) -> SyntheticElf {
        SyntheticElf {
            interpreter: Some(interpreter.to_owned()),
            machine: 62,
            ..Default::default()
        }
    }

    pub(crate) fn library() -> SyntheticElf {
        SyntheticElf { machine: 62, ..Default::default() }
    }

    pub(crate) fn needs(mut self, names: &[&str]) -> SyntheticElf {
        self.needed = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    pub(crate) fn runpath(mut self, path: &str) -> SyntheticElf {
        self.runpath = Some(path.to_owned());
        self
    }

    pub(crate) fn rpath(mut self, path: &str) -> SyntheticElf {
        self.rpath = Some(path.to_owned());
        self
    }

    pub(crate) fn machine(mut self, machine: u16) -> SyntheticElf {
        self.machine = machine;
        self
    }

    /// Header, three program headers, dynamic section, strings. One segment maps all of it at zero.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut intern = |text: &str| {
            let at = strings.len() as u64;
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let interpreter = self.interpreter.as_deref().map(&mut intern);
        let mut dynamic: Vec<(u64, u64)> =
            self.needed.iter().map(|name| (1, intern(name))).collect();
        dynamic.extend(self.rpath.as_deref().map(|path| (15, intern(path))));
        dynamic.extend(self.runpath.as_deref().map(|path| (29, intern(path))));
        let headers = 64 + 3 * 56;
        let strings_at = headers + 16 * (dynamic.len() as u64 + 2);
        dynamic.extend([(5, strings_at), (0, 0)]);
        let total = strings_at + strings.len() as u64;

        let mut out = Vec::new();
        out.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        for half in [3u16, self.machine] {
            out.extend_from_slice(&half.to_le_bytes());
        }
        out.extend_from_slice(&1u32.to_le_bytes());
        for word in [0u64, 64, 0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&0u32.to_le_bytes());
        for half in [64u16, 56, 3, 64, 0, 0] {
            out.extend_from_slice(&half.to_le_bytes());
        }
        let mut segment = |kind: u32, at: u64, len: u64| {
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(&4u32.to_le_bytes());
            for word in [at, at, at, len, len, 8] {
                out.extend_from_slice(&word.to_le_bytes());
            }
        };
        segment(1, 0, total);
        segment(2, headers, strings_at - headers);
        match interpreter {
            Some(at) => {
                let len = self.interpreter.as_ref().map_or(0, String::len) as u64 + 1;
                segment(3, strings_at + at, len);
            }
            None => segment(0, 0, 0),
        }
        for (tag, value) in dynamic {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&strings);
        out
    }
}

/// A host of a test's own: a folder that closures take for `/`.
#[derive(Debug)]
pub(crate) struct SyntheticHost {
    pub(crate) folder: tempfile::TempDir,
}

impl SyntheticHost {
    pub(crate) fn new() -> SyntheticHost {
        SyntheticHost { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &SyntheticHost {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    pub(crate) fn link(&self, path: &str, target: &str) -> &SyntheticHost {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
        self
    }
}
