//! A machine room for tests: stores in a private folder, a kernel, the guest, and a run from text to events.

use std::path::PathBuf;

use kiln_image::cache::{GuestExecutable, ImageStore};
use kiln_image::kernel::{Host, Kernel, KernelCache, find};
use kiln_model::event::{Event, Happening};
use kiln_model::job::{AccelerationChoice, Disk, JobSpec};
use kiln_model::plan::{Choices, plan};
use kiln_model::scenario::MachineWish;
use kiln_model::testing::guest_executable;
use kiln_runner::job::PoolAccess;
use kiln_runner::{Loaded, StopToken, Stores, equip, job};

/// A run's folder, gone with this.
pub(crate) struct Room {
    folder: tempfile::TempDir,
    stores: Stores,
    kernel: Kernel,
}

/// What a run told.
pub(crate) struct Told {
    pub(crate) events: Vec<Happening>,
    pub(crate) folder: PathBuf,
}

impl Room {
    pub(crate) fn new() -> Room {
        let folder = tempfile::Builder::new().prefix("kiln-").tempdir_in("/tmp").unwrap();
        let image = kiln_model::testing::kernel();
        let kernel = find(image.to_str(), &Host::this(), &KernelCache::new("/dev/null/no-kernels"))
            .unwrap_or_else(|error| panic!("{error}"));
        let stores = Stores {
            kernels: KernelCache::new(folder.path().join("kernels")),
            images: ImageStore::open(&folder.path().join("images")).unwrap(),
            guest: GuestExecutable::File(guest_executable()),
        };
        Room { folder, stores, kernel }
    }

    /// The job of a scenario, ready to be executed.
    pub(crate) fn job(&self, loaded: &Loaded) -> JobSpec {
        let machine =
            MachineWish { acceleration: Some(AccelerationChoice::Tcg), ..MachineWish::default() };
        let choices = Choices { machine, ..Choices::default() };
        let plan = plan(&loaded.scenario, &self.kernel.identity(), &choices).unwrap();
        let equipment = equip(loaded, &self.kernel, &self.stores, plan.root).unwrap();
        let run = "20261121-142530-7f3a".parse().unwrap();
        let folder = self.folder.path().join("run");
        std::fs::create_dir_all(&folder).unwrap();
        let pool = self.folder.path().join("disks.pool");
        let empty = |disk: &kiln_model::scenario::Disk| Disk {
            serial: disk.serial.clone(),
            size: disk.size.unwrap().get(),
            base: None,
            persistent: None,
        };
        let disks = plan.disks.iter().map(empty).collect();
        plan.job_spec(&equipment.places(run, folder, Some(pool), disks)).unwrap()
    }

    /// A scenario's text, loaded.
    pub(crate) fn load(&self, text: &str) -> Loaded {
        let path = self.folder.path().join("scenario.toml");
        std::fs::write(&path, text).unwrap();
        kiln_runner::load(path.to_str().unwrap()).unwrap()
    }

    pub(crate) fn execute(&self, spec: &JobSpec, stop: &StopToken) -> Told {
        let mut events = Vec::new();
        let access = PoolAccess::inside();
        job::execute(spec, &access, &mut |event: Event| events.push(event.event), stop);
        Told { events, folder: spec.folder.clone() }
    }

    pub(crate) fn run(&self, text: &str) -> Told {
        self.execute(&self.job(&self.load(text)), &StopToken::new())
    }
}

impl Told {
    /// `stage: outcome`, in order.
    pub(crate) fn outcomes(&self) -> Vec<String> {
        let ended = self.events.iter().filter_map(|event| match event {
            Happening::StageEnded { stage, outcome, .. } => Some(format!("{stage}: {outcome}")),
            _ => None,
        });
        ended.collect()
    }

    /// What was said, for a test that fails.
    pub(crate) fn transcript(&self) -> String {
        let lines = self.events.iter().map(|event| match event {
            Happening::Output { text, source, .. } => format!("[{source:?}] {text}"),
            other => format!("{other:?}\n"),
        });
        lines.collect()
    }

    #[track_caller]
    pub(crate) fn expect(&self, outcomes: &[&str]) {
        assert_eq!(self.outcomes(), outcomes, "{}", self.transcript());
    }

    pub(crate) fn terminal(&self) -> String {
        let texts = self.events.iter().filter_map(|event| match event {
            Happening::Output {
                text, source: kiln_model::event::OutputSource::Terminal, ..
            } => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }
}
