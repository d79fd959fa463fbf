//! The scenarios that ship with Kiln, embedded so that the executable needs no files beside it.

/// One of them, as text.
#[derive(Debug)]
pub struct Shipped {
    /// Its name.
    pub name: &'static str,
    /// The scenario.
    pub text: &'static str,
    /// Its scripts by the path the scenario names them with.
    pub scripts: &'static [(&'static str, &'static str)],
}

macro_rules! scripts {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../scenarios/", $path)))),*]
    };
}

const SMOKE: &[(&str, &str)] =
    scripts!["smoke/mkfs.sh", "smoke/write.sh", "smoke/remount.sh", "smoke/fsck.sh"];

/// All of them, the one to begin with first.
pub const ALL: &[Shipped] = &[
    Shipped {
        name: "simple-example",
        text: include_str!("../../../scenarios/simple-example.toml"),
        scripts: &[],
    },
    Shipped {
        name: "btrfs-smoke",
        text: include_str!("../../../scenarios/btrfs-smoke.toml"),
        scripts: SMOKE,
    },
    Shipped {
        name: "ext4-smoke",
        text: include_str!("../../../scenarios/ext4-smoke.toml"),
        scripts: SMOKE,
    },
    Shipped {
        name: "xfs-smoke",
        text: include_str!("../../../scenarios/xfs-smoke.toml"),
        scripts: SMOKE,
    },
    Shipped {
        name: "btrfs-raid5-scrub",
        text: include_str!("../../../scenarios/btrfs-raid5-scrub.toml"),
        scripts: scripts![
            "btrfs-raid5-scrub/mkfs.sh",
            "btrfs-raid5-scrub/fill.sh",
            "btrfs-raid5-scrub/corrupt.sh",
            "btrfs-raid5-scrub/scrub.sh",
            "btrfs-raid5-scrub/verify.sh",
            "btrfs-raid5-scrub/degraded.sh",
            "btrfs-raid5-scrub/replace.sh",
            "btrfs-raid5-scrub/verify-again.sh",
        ],
    },
    Shipped {
        name: "many-clones",
        text: include_str!("../../../scenarios/many-clones.toml"),
        scripts: scripts!["many-clones/clone.sh"],
    },
];

/// Finds one by name.
pub fn find(name: &str) -> Option<&'static Shipped> {
    ALL.iter().find(|shipped| shipped.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::load;

    #[test]
    fn every_shipped_scenario_loads_under_its_own_name() {
        for shipped in ALL {
            let loaded =
                load(shipped.name).unwrap_or_else(|error| panic!("{}: {error}", shipped.name));
            assert_eq!(loaded.scenario.name, shipped.name);
            assert!(!loaded.scenario.description.is_empty(), "{}", shipped.name);
        }
    }
}
