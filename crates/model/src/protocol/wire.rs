//! Integers and byte strings as they lie in a payload: little-endian, strings with a 32-bit length.

use super::frame::{MAX_PAYLOAD, encode_frame};
use super::message::MessageError;

/// Appends values to a payload.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn i32(&mut self, value: i32) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn flag(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub(super) fn count(&mut self, count: usize) {
        // A count too large for 32 bits cannot be in a payload that fits a frame; the encoder's
        // length check refuses the message.
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.extend_from_slice(bytes);
    }
}

/// Takes values from a payload; every step checks what is left.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(MessageError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, MessageError> {
        Ok(self.take::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, MessageError> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, MessageError> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, MessageError> {
        self.take().map(i32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, MessageError> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn flag(&mut self) -> Result<bool, MessageError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(MessageError::Value { what: "flag", value: u32::from(other) }),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, MessageError> {
        let length = usize::try_from(self.u32()?).map_err(|_| MessageError::Short)?;
        let (head, rest) = self.0.split_at_checked(length).ok_or(MessageError::Short)?;
        self.0 = rest;
        Ok(head.to_vec())
    }

    /// A list; its count is believed only as far as there are bytes.
    pub(super) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Reader<'a>) -> Result<T, MessageError>,
    ) -> Result<Vec<T>, MessageError> {
        let count = self.u32()?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    pub(super) fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }

    pub(super) fn end(&self) -> Result<(), MessageError> {
        if self.0.is_empty() { Ok(()) } else { Err(MessageError::Trailing { count: self.0.len() }) }
    }
}

/// Appends a payload as a frame, if it fits into one.
pub(super) fn finish(
    kind: u8,
    channel: u32,
    body: &Writer,
    out: &mut Vec<u8>,
) -> Result<(), MessageError> {
    if body.0.len() > MAX_PAYLOAD {
        return Err(MessageError::TooLong { length: body.0.len() });
    }
    encode_frame(kind, channel, &body.0, out);
    Ok(())
}
