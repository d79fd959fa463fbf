//! A sealed layer, opened: what is around it unwrapped, its index read and checked.

use std::sync::Arc;

use kiln_block::ReadOnly;

use super::header::{HEADER_SIZE, Header};
use super::segment::{ENTRY_SIZE, SECTOR, Segment};
use crate::zfile::{ZFile, is_zfile};
use crate::{Input, LayerError, OpenOptions, Uuid, tar};

/// The most entries in the index of a sealed layer.
const MOST_ENTRIES: u64 = 1_000_000;

/// One sealed layer.
#[derive(Debug)]
pub struct Layer {
    content: Input,
    zfile: Option<Arc<ReadOnly<ZFile>>>,
    in_tar: bool,
    header: Header,
    trailer: Header,
    segments: Vec<Segment>,
    remote: Option<Input>,
}

/// What the entries of an index are checked against.
struct Checks {
    /// The first sector behind the data.
    data_end: u64,
    /// Sectors of the foreign file that entries with a tag lie in, where there is one.
    remote_sectors: Option<u64>,
}

impl Layer {
    /// Opens a layer as it is found: perhaps in a tar, perhaps compressed.
    pub fn open(input: Input, options: &OpenOptions) -> Result<Layer, LayerError> {
        Layer::open_with(input, None, options)
    }

    /// Opens a layer whose content is partly in another file, the unpacked tar it was made from.
    pub fn open_over(
        input: Input,
        remote: Input,
        options: &OpenOptions,
    ) -> Result<Layer, LayerError> {
        Layer::open_with(input, Some(remote), options)
    }

    fn open_with(
        input: Input,
        remote: Option<Input>,
        options: &OpenOptions,
    ) -> Result<Layer, LayerError> {
        let payload = tar::unwrap(&input)?;
        let in_tar = payload.position(0) != input.position(0);
        let (content, zfile) = if is_zfile(&payload)? {
            let zfile = ZFile::open(payload, Arc::clone(&options.cache), options.threads)?;
            let name = format!("{} (unpacked)", zfile.name());
            let zfile = Arc::new(ReadOnly(zfile));
            (Input::new(&name, Arc::clone(&zfile) as _), Some(zfile))
        } else {
            (payload, None)
        };
        let (header, trailer) = read_headers(&content)?;
        let bytes = read_index(&content, &trailer)?;
        let mut segments = parse_index(&bytes);
        let checks = Checks {
            data_end: trailer.index_offset / SECTOR,
            remote_sectors: remote.as_ref().map(|remote| remote.len().div_ceil(SECTOR)),
        };
        check_segments(&segments, &checks).map_err(|(number, rule)| {
            content.damaged(trailer.index_offset + number * ENTRY_SIZE, rule)
        })?;
        // Entries of nothing are taken by others; they say nothing.
        segments.retain(|(_, segment)| segment.len > 0);
        let segments = segments.into_iter().map(|(_, segment)| segment).collect();
        Ok(Layer { content, zfile, in_tar, header, trailer, segments, remote })
    }

    /// Its name in errors.
    pub fn name(&self) -> &str {
        match &self.zfile {
            Some(zfile) => zfile.0.name(),
            None => self.content.name(),
        }
    }

    /// Which layer it is, if its header says so.
    pub fn uuid(&self) -> Option<Uuid> {
        self.trailer.uuid.filter(|uuid| !uuid.is_nil())
    }

    /// Which layer it was made to lie on, if its header says so.
    pub fn parent(&self) -> Option<Uuid> {
        self.trailer.parent.filter(|uuid| !uuid.is_nil())
    }

    /// Bytes of the disk; zero where the layer below decides.
    pub fn virtual_size(&self) -> u64 {
        self.trailer.virtual_size
    }

    /// What its maker noted, up to the first NUL.
    pub fn user_tag(&self) -> &[u8] {
        let tag = &self.trailer.user_tag;
        &tag[..tag.iter().position(|byte| *byte == 0).unwrap_or(tag.len())]
    }

    /// Its index, sorted. The source is the tag as it is stored.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Its compression, if it is compressed.
    pub fn zfile(&self) -> Option<&ZFile> {
        self.zfile.as_ref().map(|zfile| &zfile.0)
    }

    /// Whether it is in a tar.
    pub fn is_in_tar(&self) -> bool {
        self.in_tar
    }

    /// Whether it was sealed where it was written, and so may hold data that nothing refers to.
    pub fn was_sealed_in_place(&self) -> bool {
        !self.header.is_sealed()
    }

    /// The file that the positions in the index count in.
    pub(crate) fn content(&self) -> &Input {
        &self.content
    }

    pub(crate) fn remote(&self) -> Option<&Input> {
        self.remote.as_ref()
    }
}

fn read_headers(content: &Input) -> Result<(Header, Header), LayerError> {
    let mut bytes = [0; 4096];
    content.read(0, &mut bytes, "the layer's header")?;
    let header = Header::parse(&bytes).map_err(|rule| content.damaged(0, rule))?;
    if !header.is_header() {
        return Err(content.damaged(28, "the layer's header has a trailer's flags"));
    }
    let at = content.len().saturating_sub(HEADER_SIZE);
    if at < HEADER_SIZE {
        return Err(content.damaged(HEADER_SIZE, "the layer ends before its trailer"));
    }
    content.read(at, &mut bytes, "the layer's trailer")?;
    let trailer = Header::parse(&bytes).map_err(|rule| {
        content.damaged(at, format!("{rule} in the trailer; was this layer never sealed?"))
    })?;
    let flaw = if trailer.is_header() {
        Some("the trailer has a header's flags")
    } else if !trailer.is_data() {
        Some("the trailer belongs to an index, not to a layer")
    } else if !trailer.is_sealed() {
        Some("the trailer does not say that the layer is sealed")
    } else {
        None
    };
    match flaw {
        Some(rule) => Err(content.damaged(at + 28, rule)),
        None => Ok((header, trailer)),
    }
}

fn read_index(content: &Input, trailer: &Header) -> Result<Vec<u8>, LayerError> {
    let trailer_at = content.len() - HEADER_SIZE;
    let (at, count) = (trailer.index_offset, trailer.index_size);
    if count > MOST_ENTRIES {
        let rule = format!("an index of {count} entries is larger than {MOST_ENTRIES}");
        return Err(content.damaged(trailer_at + 40, rule));
    }
    if at < HEADER_SIZE || trailer_at.checked_sub(at).is_none_or(|room| room < count * ENTRY_SIZE) {
        let rule =
            format!("{count} index entries at byte {at} do not lie between header and trailer");
        return Err(content.damaged(trailer_at + 32, rule));
    }
    let mut bytes = vec![0; usize::try_from(count * ENTRY_SIZE).unwrap_or(0)];
    content.read(at, &mut bytes, "the index")?;
    Ok(bytes)
}

/// The entries that are not padding, and their places in the index.
pub(crate) fn parse_index(bytes: &[u8]) -> Vec<(u64, Segment)> {
    let entries = bytes.chunks_exact(16).map(Segment::decode).zip(0u64..);
    entries.filter_map(|(segment, number)| segment.map(|segment| (number, segment))).collect()
}

/// The rules of a sealed layer's index; an error names the entry.
fn check_segments(segments: &[(u64, Segment)], checks: &Checks) -> Result<(), (u64, String)> {
    let mut covered = 0;
    for (number, segment) in segments {
        let (start, at) = (segment.start, segment.stored_at);
        if start < covered {
            let rule =
                format!("entry {number} starts at sector {start}, within or before the last one");
            return Err((*number, rule));
        }
        covered = segment.end();
        let is_remote = segment.source == 1 && !segment.zeroed;
        let fits = match checks.remote_sectors.filter(|_| is_remote) {
            Some(sectors) => segment.stored_end() <= sectors,
            None if segment.zeroed => at <= checks.data_end,
            None => at >= 8 && segment.stored_end() <= checks.data_end,
        };
        if !fits {
            let rule = format!(
                "entry {number} is stored in sectors {at} to {}, outside of the data",
                segment.stored_end()
            );
            return Err((*number, rule));
        }
    }
    Ok(())
}
