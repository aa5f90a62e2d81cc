//! What happens at a system call that is not on the list: a line that names it, then the end of the process.
//!
//! Ending is right: either the list lacks something, which must be heard of, or somebody else's code runs here.

use std::io;

/// Reports the refused call on standard error, and aborts. Async-signal-safe: no lock, no allocation.
extern "C" fn refused(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes the information of the signal, valid during the call, as asked for with SA_SIGINFO.
    let words = unsafe { &*info.cast::<[u32; 8]>() };
    // `_sigsys`: behind three words and a hole, the address of the call, then its number.
    let number = words[6];
    let mut line = Line::default();
    line.push(b"spanblk: the sandbox refused system call ");
    line.push_number(number);
    line.push(b" ('ausyscall NUMBER' names it) and ends the daemon. If this is no attack, please report it; --sandbox log goes on.\n");
    // SAFETY: reads the bytes of the line. If it cannot be written, there is nobody to tell.
    unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len) };
    std::process::abort();
}

/// From now on a refused call ends in [`refused`].
pub(super) fn install() -> io::Result<()> {
    // SAFETY: all-zero is a value of this struct: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = refused as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what signal handlers may.
    if unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A line of text without an allocation; what does not fit is left out.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line { bytes: [0; 256], len: 0 }
    }
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        let room = self.bytes[self.len..].iter_mut();
        self.len += room.zip(text).map(|(to, from)| *to = *from).count();
    }

    fn push_number(&mut self, number: u32) {
        let digits: [u8; 10] = std::array::from_fn(|place| {
            let power = 10_u32.pow(9 - u32::try_from(place).unwrap_or(9));
            b'0' + u8::try_from(number / power % 10).unwrap_or(0)
        });
        let zeros = digits.iter().take(9).take_while(|digit| **digit == b'0').count();
        self.push(&digits[zeros..]);
    }
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn lines_have_numbers_and_an_end() {
        let mut line = Line::default();
        for number in [0, 7, 59, 4_294_967_295] {
            line.push_number(number);
            line.push(b" ");
        }
        assert_eq!(&line.bytes[..line.len], b"0 7 59 4294967295 ");
        line.push(&[b'x'; 300]);
        assert_eq!(line.len, 256);
    }

    #[test]
    fn the_number_is_where_the_kernel_puts_it() {
        // Signal, error, code, hole, address (two words), number, architecture.
        const { assert!(size_of::<libc::siginfo_t>() >= size_of::<[u32; 8]>()) };
        const { assert!(cfg!(target_pointer_width = "64")) };
    }
}
