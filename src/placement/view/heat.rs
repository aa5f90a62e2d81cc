//! How hot the extents of a VHD are: a word each, see [`crate::metrics::heat`]. Memory is taken for what is touched only. It is not kept when
//! the process is killed; what is stored of it now and then comes back.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::VhdMap;
use crate::base::prefetch::prefetch;
use crate::base::units::ExtentIndex;
use crate::metrics::heat::{self, Window};

impl VhdMap {
    /// A request touches an extent. Whether that is the first one in this window. Two at the same moment may count as one.
    #[inline]
    pub fn heat_up(&self, extent: ExtentIndex, window: Window) -> bool {
        let (segment, at) = self.segments.of(extent);
        let word = &segment.heat[at];
        let (touched, first) = heat::touched(word.load(Ordering::Relaxed), window);
        word.store(touched, Ordering::Relaxed);
        first
    }

    /// The extent is about to be touched: in a large VHD its word is in no cache.
    #[inline]
    pub fn expect_touch(&self, extent: ExtentIndex) {
        let (segment, at) = self.segments.of(extent);
        prefetch(std::ptr::from_ref(&segment.heat[at]).addr());
    }

    /// How hot an extent is.
    #[must_use]
    pub fn heat(&self, extent: ExtentIndex, window: Window) -> u32 {
        let (segment, at) = self.segments.of(extent);
        heat::heat(segment.heat[at].load(Ordering::Relaxed), window)
    }

    /// How hot extents are; takes back what has come to nothing.
    pub fn sweep_heat(&self, extents: Range<u32>, window: Window) -> impl Iterator<Item = u32> + '_ {
        (extents.start..extents.end.min(self.extents())).map(move |extent| {
            let (segment, at) = self.segments.of(ExtentIndex(extent));
            let word = &segment.heat[at];
            let found = word.load(Ordering::Relaxed);
            if found != 0 && heat::swept(found, window) == 0 {
                // Unless it is touched just now.
                let _ = word.compare_exchange(found, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
            heat::heat(found, window)
        })
    }

    /// Takes heat that was stored, before anybody touches the extents.
    pub fn restore_heat(&self, first: u32, heats: &[u32], window: Window) {
        let hot = (first..self.extents()).zip(heats).filter(|(_, heat)| **heat > 0);
        for (extent, heat) in hot {
            let (segment, at) = self.segments.of(ExtentIndex(extent));
            segment.heat[at].store(heat::word_of(*heat, window), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_is_of_its_extent_also_in_a_view_that_has_grown() {
        let map = VhdMap::new(100);
        map.reserve(5000).unwrap();
        map.grow(5000);
        let window = Window::at(0);
        for extent in [0, 99, 4999] {
            assert!(map.heat_up(ExtentIndex(extent), window) && !map.heat_up(ExtentIndex(extent), window));
        }
        let hot = |map: &VhdMap| -> Vec<u32> { map.sweep_heat(0..10_000, window).collect() };
        let heats = hot(&map);
        assert_eq!((heats.len(), heats[0], heats[99], heats[4999]), (5000, 2, 2, 2));
        assert_eq!(heats.iter().sum::<u32>(), 6);
        let again = VhdMap::new(5000);
        again.restore_heat(0, &heats, window);
        assert!(hot(&again) == heats, "what is restored is as hot as it was");
        assert!(again.heat_up(ExtentIndex(99), window), "it has not been touched since");
        assert_eq!(again.heat(ExtentIndex(99), window), 3);
    }
}
