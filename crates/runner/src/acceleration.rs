//! Deciding what executes a job's machines, before the job's own process would have to ask.

use std::path::Path;

use kiln_model::event::{Acceleration, Happening, NoteLevel};
use kiln_model::job::{AccelerationChoice, Machine};
use kiln_vm::probe::{self, KvmVerdict, NoKvm};

/// Replaces `auto` by what works on this host, as the probe found it or `cache` (a folder) remembers it. Where
/// that is not KVM, returns the note that says why and what can be done. The calling program's `main` must begin with
/// [`probe::take_over`].
///
/// # Errors
/// When KVM was demanded and does not work.
pub fn settle_acceleration(
    machine: &mut Machine,
    cache: Option<&Path>,
) -> Result<Option<Happening>, NoKvm> {
    settle(machine, || probe::kvm(cache))
}

fn settle(
    machine: &mut Machine,
    probe: impl FnOnce() -> KvmVerdict,
) -> Result<Option<Happening>, NoKvm> {
    let (chosen, verdict) = probe::choose(machine.acceleration, probe)?;
    machine.acceleration = match chosen {
        Acceleration::Kvm => AccelerationChoice::Kvm,
        Acceleration::Tcg => AccelerationChoice::Tcg,
    };
    let refused = verdict.filter(|verdict| !verdict.is_usable());
    Ok(refused.map(|verdict| {
        let cure = verdict.cure().map_or_else(String::new, |cure| format!("; {cure}"));
        Happening::Note {
            level: NoteLevel::Info,
            text: format!("TCG instead of KVM, several times slower: {verdict}{cure}"),
        }
    }))
}

#[cfg(test)]
mod tests {
    use kiln_model::scenario::MachineWish;

    use super::*;

    #[test]
    fn a_host_without_kvm_translates_and_says_why() {
        let mut machine = MachineWish::default().settle();
        let note = settle(&mut machine, || KvmVerdict::Missing).unwrap().unwrap();
        assert_eq!(machine.acceleration, AccelerationChoice::Tcg);
        let Happening::Note { text, .. } = note else { panic!("{note:?}") };
        assert!(text.contains("/dev/kvm does not exist") && text.contains("modprobe"), "{text}");
    }

    #[test]
    fn who_asks_for_tcg_is_not_probed_and_who_demands_kvm_is_not_fobbed_off() {
        let mut machine = MachineWish::default().settle();
        machine.acceleration = AccelerationChoice::Tcg;
        assert_eq!(settle(&mut machine, || panic!("probed")).unwrap(), None);
        machine.acceleration = AccelerationChoice::Kvm;
        assert!(settle(&mut machine, || KvmVerdict::Forbidden).is_err());
    }
}
