//! Memory of a guest.

use std::rc::Rc;

use crate::base::aligned::AlignedBuf;
use crate::virtio::request::Segment;

/// Guest memory of one request.
#[derive(Clone)]
pub struct Guest {
    /// Kept while an engine may use it.
    pub memory: Rc<AlignedBuf>,
    pub segments: Vec<Segment>,
}

impl Guest {
    pub fn filled(len: usize, byte: u8) -> Guest {
        Guest::split(len, byte, 0, len)
    }

    /// Buffers of `part` bytes each, beginning `skew` bytes into a page.
    pub fn split(len: usize, byte: u8, skew: usize, part: usize) -> Guest {
        let mut memory = AlignedBuf::zeroed(len + skew);
        memory.fill(byte);
        let segments = (0..len)
            .step_by(part.max(1))
            .map(|at| Segment {
                ptr: memory.as_ptr().wrapping_add(skew + at),
                len: u32::try_from(part.min(len - at)).unwrap(),
            })
            .collect();
        Guest { memory: Rc::new(memory), segments }
    }

    /// Fills the buffers, before the request starts.
    pub fn fill_with(&mut self, fill: impl FnOnce(&mut [u8])) {
        let skew = self.skew();
        fill(&mut Rc::get_mut(&mut self.memory).expect("not started yet")[skew..]);
    }

    fn skew(&self) -> usize {
        self.memory.len() - self.segments.iter().map(|s| s.len as usize).sum::<usize>()
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.memory[self.skew()..].to_vec()
    }
}
