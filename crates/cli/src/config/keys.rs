//! Every key of the configuration: its kind, default, variable and flag. `docs/configuration.md`, the JSON
//! schema and `kiln config show` are drawn from this table.

use kiln_model::job::KeepDisks;
use kiln_model::restore::Restore;
use kiln_model::root::RootChoice;

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// A path; `~/` is the home folder, relative ones start at the folder of the file that names them.
    Path,
    /// A kernel: a path if it holds a `/`, else a release.
    Kernel,
    /// Memory of a machine: `512M`, `2G`.
    Memory,
    /// Processors of a machine.
    Cpus,
    /// Machines that run at once.
    Machines,
    /// `500ms`, `90s`, `2m`, `1h30m`.
    Time,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Several texts; in a variable, separated by spaces.
    Texts,
    /// `true` or `false`.
    Switch,
}

impl Kind {
    /// For a person: what to write.
    pub(crate) fn describe(self) -> String {
        match self {
            Kind::Text => "text".to_owned(),
            Kind::Path => "a path".to_owned(),
            Kind::Kernel => "a path or a release".to_owned(),
            Kind::Memory => "a size such as 512M or 2G".to_owned(),
            Kind::Cpus | Kind::Machines => "a number from 1 to 64".to_owned(),
            Kind::Time => "a time such as 90s or 2m".to_owned(),
            Kind::Choice(words) => words.join(", "),
            Kind::Texts => "a list of texts".to_owned(),
            Kind::Switch => "true or false".to_owned(),
        }
    }
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// `table.key` as in the file.
    pub(crate) name: &'static str,
    /// What it may be.
    pub(crate) kind: Kind,
    /// Its value when nobody says otherwise.
    pub(crate) default: Option<&'static str>,
    /// The environment variable.
    pub(crate) variable: &'static str,
    /// The flag, on the commands that have it.
    pub(crate) flag: Option<&'static str>,
    /// One line for people.
    pub(crate) about: &'static str,
}

/// The whole configuration.
pub(crate) const KEYS: &[Key] = &[
    Key {
        name: "run.kernel",
        kind: Kind::Kernel,
        default: None,
        variable: "KILN_KERNEL",
        flag: Some("--kernel"),
        about: "The kernel to test when no flag names one; without it, the newest fetched one",
    },
    Key {
        name: "run.keep_disks",
        kind: Kind::Choice(KeepDisks::WORDS),
        default: Some("failed"),
        variable: "KILN_KEEP_DISKS",
        flag: Some("--keep-disks"),
        about: "After which stages disks are kept as they are then, for `kiln shell RUN/STAGE`",
    },
    Key {
        name: "vm.memory",
        kind: Kind::Memory,
        default: None,
        variable: "KILN_MEMORY",
        flag: Some("--memory"),
        about: "Memory of the machine",
    },
    Key {
        name: "vm.cpus",
        kind: Kind::Cpus,
        default: None,
        variable: "KILN_CPUS",
        flag: Some("--cpus"),
        about: "Number of its processors",
    },
    Key {
        name: "vm.machines",
        kind: Kind::Machines,
        default: None,
        variable: "KILN_MACHINES",
        flag: Some("--machines"),
        about: "How many machines run at once, where a scenario has stages that want fresh ones",
    },
    Key {
        name: "vm.acceleration",
        kind: Kind::Choice(&["auto", "kvm", "tcg"]),
        default: Some("auto"),
        variable: "KILN_ACCELERATION",
        flag: Some("--acceleration"),
        about: "What executes the guest: KVM where it was probed and works, or what is named",
    },
    Key {
        name: "vm.qemu",
        kind: Kind::Path,
        default: None,
        variable: "KILN_QEMU",
        flag: Some("--qemu"),
        about: "The emulator; without it, qemu-system-x86_64 on the PATH",
    },
    Key {
        name: "vm.boot_timeout",
        kind: Kind::Time,
        default: None,
        variable: "KILN_BOOT_TIMEOUT",
        flag: Some("--boot-timeout"),
        about: "How long a boot may take until the guest answers",
    },
    Key {
        name: "vm.hang_timeout",
        kind: Kind::Time,
        default: None,
        variable: "KILN_HANG_TIMEOUT",
        flag: Some("--hang-timeout"),
        about: "Neither output nor heartbeat for this long is a hang",
    },
    Key {
        name: "vm.kernel_parameters",
        kind: Kind::Texts,
        default: None,
        variable: "KILN_KERNEL_PARAMETERS",
        flag: Some("--parameter"),
        about: "More kernel parameters; those of all layers add up",
    },
    Key {
        name: "vm.fast",
        kind: Kind::Switch,
        default: Some("false"),
        variable: "KILN_FAST",
        flag: Some("--fast"),
        about: "Allow kernel parameters that boot faster but change the kernel's behaviour",
    },
    Key {
        name: "vm.root",
        kind: Kind::Choice(RootChoice::WORDS),
        default: Some("auto"),
        variable: "KILN_ROOT",
        flag: Some("--root"),
        about: "Where the guest's root is: in memory, on a disk that is never written, or on a clone",
    },
    Key {
        name: "vm.restore",
        kind: Kind::Choice(Restore::WORDS),
        default: Some("ready"),
        variable: "KILN_RESTORE",
        flag: Some("--restore"),
        about: "Where machines start: at a boot, or at a moment that was saved of one",
    },
    Key {
        name: "disk.idle",
        kind: Kind::Time,
        default: Some("5s"),
        variable: "KILN_DISK_IDLE",
        flag: Some("--idle"),
        about: "How long the owner of a pool of disks stays when nobody needs it",
    },
    Key {
        name: "guest.executable",
        kind: Kind::Path,
        default: None,
        variable: "KILN_GUEST",
        flag: None,
        about: "The guest executable; without it, the one built into kiln",
    },
    Key {
        name: "report.output",
        kind: Kind::Path,
        default: None,
        variable: "KILN_REPORT_OUTPUT",
        flag: Some("--output"),
        about: "Where `kiln report` writes; without it, a folder beside the recordings",
    },
    Key {
        name: "publish.git",
        kind: Kind::Text,
        default: None,
        variable: "KILN_PUBLISH_GIT",
        flag: Some("--git"),
        about: "The repository `kiln publish` commits to",
    },
    Key {
        name: "publish.branch",
        kind: Kind::Text,
        default: Some("gh-pages"),
        variable: "KILN_PUBLISH_BRANCH",
        flag: Some("--branch"),
        about: "Its branch",
    },
    Key {
        name: "output.format",
        kind: Kind::Choice(&["text", "json"]),
        default: Some("text"),
        variable: "KILN_FORMAT",
        flag: Some("--format"),
        about: "Text for people, or JSON for programs",
    },
    Key {
        name: "output.color",
        kind: Kind::Choice(&["auto", "always", "never"]),
        default: Some("auto"),
        variable: "KILN_COLOR",
        flag: Some("--color"),
        about: "When to colour",
    },
];

/// Variables that are not configuration but are read all the same, by Kiln or by its own build and tests.
pub(crate) const OTHER_VARIABLES: &[(&str, &str)] = &[
    ("KILN_HOME", "Keep configuration, cache and recordings under this one folder"),
    ("KILN_LOG", "What Kiln tells about itself on stderr, such as `debug` or `kiln_vm=trace`"),
    ("KILN_COMPLETE_PATIENCE", "How long completion may look for names, `500ms` unless said"),
    ("KILN_GUEST_EMBED", "While building Kiln: the guest executable to build in"),
    ("KILN_STAGE", "In a guest: the name of the stage that runs, for its script"),
    ("KILN_TEST_KERNEL", "For Kiln's own tests: the kernel they boot"),
    ("KILN_UPDATE", "For Kiln's own tests: rewrite the generated pages"),
];

/// The key of this name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_keys_share_a_name_or_a_variable() {
        for (at, key) in KEYS.iter().enumerate() {
            for other in &KEYS[at + 1..] {
                assert_ne!(key.name, other.name);
                assert_ne!(key.variable, other.variable);
            }
            assert!(key.variable.starts_with("KILN_"), "{}", key.variable);
        }
    }
}
