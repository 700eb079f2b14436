//! `array_of` and `queue_of`: allocate arrays whose size depends on the number of blocks of a pool. No other
//! code allocates such an array.
//!
//! Invariant: a size that the memory allocator refuses is an error here, and does not abort the process.
//! (An operating system that promises more memory than it has may still end the process later.)

use crate::error::{PagedKvError, Result};
use crate::sync::{ArrayQueue, place_array};

/// Creates an array of `len` elements, each made by `make`.
pub(crate) fn array_of<T>(len: usize, mut make: impl FnMut() -> T) -> Result<Box<[T]>> {
    let mut elements = Vec::new();
    elements.try_reserve_exact(len).map_err(|_| refusal::<T>(len))?;
    elements.extend((0..len).map(|_| make()));
    let elements: Box<[T]> = elements.into();
    place_array(&elements);
    Ok(elements)
}

/// Creates a queue of `capacity` elements.
pub(crate) fn queue_of<T>(capacity: usize) -> Result<ArrayQueue<T>> {
    // A queue that is refused memory aborts, so the same amount is allocated and freed first.
    refuse_beyond_memory::<(usize, T)>(capacity)?;
    Ok(ArrayQueue::new(capacity))
}

/// Refuses `len` elements of the size of a `T` if the memory allocator refuses them now.
pub(crate) fn refuse_beyond_memory<T>(len: usize) -> Result<()> {
    let mut elements: Vec<T> = Vec::new();
    elements.try_reserve_exact(len).map_err(|_| refusal::<T>(len))?;
    // Otherwise the compiler may remove the allocation and assume that it succeeded.
    std::hint::black_box(&elements);
    Ok(())
}

#[cold]
fn refusal<T>(len: usize) -> PagedKvError {
    PagedKvError::OutOfHostMemory { bytes: len.saturating_mul(size_of::<T>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_no_allocator_can_serve_is_an_error() {
        for len in [1 << 60, usize::MAX - 1, usize::MAX] {
            let refused = Some(PagedKvError::OutOfHostMemory { bytes: len.saturating_mul(8) });
            assert_eq!(array_of(len, || 0_u64).err(), refused);
            assert_eq!(refuse_beyond_memory::<u64>(len).err(), refused);
            let refused = PagedKvError::OutOfHostMemory { bytes: len.saturating_mul(16) };
            assert_eq!(queue_of::<u64>(len).err(), Some(refused));
        }
    }

    #[test]
    fn an_array_has_as_many_elements_as_were_asked_for() {
        let mut next = 0;
        let array = array_of(5, || {
            next += 1;
            next
        });
        assert_eq!(*array.unwrap(), [1, 2, 3, 4, 5]);
        assert!(array_of(0, || 7).unwrap().is_empty());
        assert_eq!(queue_of::<u8>(3).unwrap().len(), 0);
    }
}
