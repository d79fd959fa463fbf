//! One front-end, from its first message to its last: what it set up, and the queues that run.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::config::{self, CACHE_AT, F_LOG_ALL, F_PROTOCOL_FEATURES, agreed};
use super::dirty::DirtyLog;
use super::disk::{Disk, Memory};
use super::engine::{Parts, Running};
use super::inflight::{self, Inflight};
use super::ring::{MOST_ENTRIES, Ring, Setup};

/// Everything a front-end has said.
#[derive(Debug)]
pub(crate) struct Session {
    disk: Arc<Disk>,
    gather: Duration,
    features: u64,
    memory: Option<Arc<GuestMemoryMmap>>,
    /// Where the front-end sees the guest's memory, which is how it names the rings.
    views: Vec<View>,
    dirty: Option<Arc<DirtyLog>>,
    inflight: Option<Inflight>,
    queues: Vec<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    setup: Setup,
    running: Option<Running>,
}

#[derive(Debug, Clone, Copy)]
struct View {
    seen_at: u64,
    guest: u64,
    len: u64,
}

impl Session {
    pub(crate) fn new(disk: Arc<Disk>, queues: u16, gather: Duration) -> Session {
        Session {
            disk,
            gather,
            features: 0,
            memory: None,
            views: Vec::new(),
            dirty: None,
            inflight: None,
            queues: std::iter::repeat_with(Queue::default).take(queues.into()).collect(),
        }
    }

    fn count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    fn queue(&mut self, index: impl Into<u32>) -> Result<&mut Queue> {
        let index = usize::try_from(index.into()).map_err(|_| Error::InvalidParam)?;
        self.queues.get_mut(index).ok_or(Error::InvalidParam)
    }

    /// Where a ring is for the guest.
    fn translate(&self, seen_at: u64) -> Result<u64> {
        let found = self.views.iter().find_map(|view| {
            let within = seen_at.checked_sub(view.seen_at).filter(|within| *within < view.len)?;
            Some(view.guest + within)
        });
        found.ok_or(Error::InvalidParam)
    }

    /// Starts a queue if it has all it needs and is to run.
    fn start(&mut self, index: u16) -> Result<()> {
        let logs = self.features & F_LOG_ALL != 0;
        let dirty = self.dirty.clone().filter(|_| logs);
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return Err(Error::InvalidParam);
        };
        let enabled = queue.setup.enabled || self.features & F_PROTOCOL_FEATURES == 0;
        if queue.running.is_some() || queue.setup.kick.is_none() || !enabled {
            return Ok(());
        }
        let guest = self.memory.clone().ok_or(Error::InvalidParam)?;
        let memory = Memory { guest, dirty };
        let notes =
            self.inflight.as_ref().and_then(|inflight| inflight.queue(index, queue.setup.size));
        let event_idx = agreed(self.features, VIRTIO_RING_F_EVENT_IDX);
        let ring = Ring::new(&queue.setup, memory.clone(), event_idx, notes)
            .map_err(|_| Error::InvalidParam)?;
        let parts = Parts {
            name: format!("vhost-{index}"),
            disk: Arc::clone(&self.disk),
            memory,
            always_durable: !agreed(self.features, VIRTIO_BLK_F_FLUSH),
            gather: self.gather,
            ring,
        };
        let running = Running::start(parts, &queue.setup).map_err(Error::ReqHandlerError)?;
        queue.running = Some(running);
        Ok(())
    }

    /// Stops queues, changes something they rely on, and starts those that ran. What was taken is finished
    /// with the old, what comes next sees the new.
    fn between(&mut self, change: impl FnOnce(&mut Session) -> Result<()>) -> Result<()> {
        let mut ran = Vec::new();
        for (index, queue) in (0u16..).zip(&mut self.queues) {
            if queue.stop() {
                ran.push(index);
            }
        }
        change(self)?;
        ran.into_iter().try_for_each(|index| self.start(index))
    }
}

impl Queue {
    /// Stops it if it runs, and remembers where.
    fn stop(&mut self) -> bool {
        let Some(running) = self.running.take() else { return false };
        self.setup.base = running.stop();
        true
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.queues.iter_mut().for_each(|queue| {
            queue.stop();
        });
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(config::features(self.disk.export()))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !config::features(self.disk.export()) != 0 {
            return Err(Error::FeatureMismatch);
        }
        if features == self.features {
            return Ok(());
        }
        self.between(|session| {
            session.features = features;
            Ok(())
        })
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut views = Vec::with_capacity(regions.len());
        let mut mapped = Vec::with_capacity(regions.len());
        for (region, file) in regions.iter().zip(files) {
            let len = usize::try_from(region.memory_size).map_err(|_| Error::InvalidParam)?;
            let file = FileOffset::new(file, region.mmap_offset);
            let region_failed = |_| Error::InvalidParam;
            let mapping = MmapRegion::from_file(file, len).map_err(region_failed)?;
            let at = GuestAddress(region.guest_phys_addr);
            mapped.push(GuestRegionMmap::new(mapping, at).ok_or(Error::InvalidParam)?);
            views.push(View {
                seen_at: region.user_addr,
                guest: region.guest_phys_addr,
                len: region.memory_size,
            });
        }
        mapped.sort_by_key(vm_memory::GuestMemoryRegion::start_addr);
        let memory = GuestMemoryMmap::from_regions(mapped).map_err(|_| Error::InvalidParam)?;
        self.between(|session| {
            session.memory = Some(Arc::new(memory));
            session.views = views;
            Ok(())
        })?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, entries: u32) -> Result<()> {
        let entries = u16::try_from(entries).map_err(|_| Error::InvalidParam)?;
        if entries == 0 || entries > MOST_ENTRIES || !entries.is_power_of_two() {
            return Err(Error::InvalidParam);
        }
        let queue = self.queue(index)?;
        queue.stop();
        queue.setup.size = entries;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let (table, used) = (self.translate(descriptor)?, self.translate(used)?);
        let available = self.translate(available)?;
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let queue = self.queue(index)?;
        let ran = queue.stop();
        let setup = &mut queue.setup;
        (setup.table, setup.available, setup.used) = (table, available, used);
        setup.log_used_at = logged.then_some(log);
        match u16::try_from(index) {
            Ok(index) if ran => self.start(index),
            _ => Ok(()),
        }
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let queue = self.queue(index)?;
        queue.stop();
        // The upper half is for packed rings.
        queue.setup.base = u16::try_from(base & 0xffff).unwrap_or(0);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let queue = self.queue(index)?;
        queue.stop();
        queue.setup.kick = None;
        Ok(VhostUserVringState::new(index, queue.setup.base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        // Without one, the rings would have to be polled for ever.
        let kick = fd.ok_or(Error::InvalidParam)?;
        let queue = self.queue(index)?;
        queue.stop();
        queue.setup.kick = Some(Arc::new(kick));
        self.start(index.into())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let queue = self.queue(index)?;
        queue.setup.call = fd.map(Arc::new);
        if let Some(running) = &queue.running {
            running.ring().set_call(queue.setup.call.clone());
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let queue = self.queue(index)?;
        queue.setup.error = fd.map(Arc::new);
        if let Some(running) = &queue.running {
            running.ring().set_error(queue.setup.error.clone());
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queues.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let queue = self.queue(index)?;
        queue.setup.enabled = enable;
        if !enable {
            queue.stop();
            return Ok(());
        }
        self.start(u16::try_from(index).map_err(|_| Error::InvalidParam)?)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let space = config::space(self.disk.export(), self.count(), self.disk.cache_is_volatile());
        let bytes = space.iter().copied().chain(std::iter::repeat(0));
        let (skip, take) = (usize::try_from(offset), usize::try_from(size));
        match (skip, take) {
            // Who asks for more asks for another kind of device.
            (Ok(skip), Ok(take)) if take <= 256 => Ok(bytes.skip(skip).take(take).collect()),
            _ => Err(Error::InvalidParam),
        }
    }

    fn set_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        let (CACHE_AT, [cache]) = (offset, bytes) else { return Err(Error::InvalidParam) };
        let is_volatile = *cache != 0;
        self.disk.set_cache_is_volatile(is_volatile);
        if let Some(inflight) = &self.inflight {
            inflight.note_cache(is_volatile);
        }
        Ok(())
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, entries) = (asked.num_queues, asked.queue_size);
        if queues == 0 || queues > self.count() || entries == 0 || entries > MOST_ENTRIES {
            return Err(Error::InvalidParam);
        }
        let file = inflight::create(queues, entries).map_err(Error::ReqHandlerError)?;
        let len = inflight::len_for(queues, entries) as u64;
        Ok((VhostUserInflight::new(len, 0, queues, entries), file))
    }

    fn set_inflight_fd(&mut self, kept: &VhostUserInflight, file: File) -> Result<()> {
        if kept.queue_size > MOST_ENTRIES {
            return Err(Error::InvalidParam);
        }
        let inflight =
            Inflight::map(file, kept.mmap_offset, kept.mmap_size, kept.num_queues, kept.queue_size)
                .ok_or(Error::InvalidParam)?;
        match inflight.cache_is_volatile() {
            Some(is_volatile) => self.disk.set_cache_is_volatile(is_volatile),
            None => inflight.note_cache(self.disk.cache_is_volatile()),
        }
        self.between(|session| {
            session.inflight = Some(inflight);
            Ok(())
        })
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let dirty = DirtyLog::map(file, log.mmap_offset, log.mmap_size);
        let dirty = Arc::new(dirty.ok_or(Error::InvalidParam)?);
        self.between(|session| {
            session.dirty = Some(dirty);
            Ok(())
        })
    }

    // What follows was not offered, so nobody may ask for it.

    fn reset_device(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("not offered"))
    }

    fn set_backend_req_fd(&mut self, _backend: Backend) {}
}
