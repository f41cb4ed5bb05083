//! Pointers as they cross the C boundary, wrapped so that the rest of the code holds none.
//!
//! The types are transparent over the pointer, so a function that takes them has the C signature.
//! Invariant: a value of these types came through an `unsafe extern "C"` function, whose caller
//! vouches that the pointer is null or valid for the type.

use crate::driver::failure::{Code, Outcome, failure};
use std::ffi::{CStr, c_char, c_void};

fn null(what: &str) -> crate::driver::failure::Failure {
    failure(Code::InvalidValue, format!("a null pointer where {what} belongs"))
}

/// Where a result goes.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    /// Wraps a pointer, for callers in Rust.
    ///
    /// # Safety
    /// `pointer` is null or valid for a write of a `T`, aligned or not.
    #[must_use]
    pub unsafe fn new(pointer: *mut T) -> Self {
        Self(pointer)
    }

    /// Whether the caller wants no result.
    #[must_use]
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Writes the result.
    ///
    /// # Errors
    /// `InvalidValue` for a null pointer.
    pub fn set(self, value: T) -> Outcome {
        if self.0.is_null() {
            return Err(null("a result"));
        }
        // SAFETY: not null, hence valid for a write by the invariant of this module.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes the result where the caller wants one.
    pub fn set_if_wanted(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: not null, hence valid for a write by the invariant of this module.
            unsafe { self.0.write_unaligned(value) };
        }
    }

    /// What is there now: for arguments that are read and then written.
    ///
    /// # Errors
    /// `InvalidValue` for a null pointer.
    pub fn get(self) -> Outcome<T> {
        if self.0.is_null() {
            return Err(null("a value"));
        }
        // SAFETY: not null, hence valid and initialised by the function's contract.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// Writes several results, one behind the other.
    ///
    /// # Errors
    /// `InvalidValue` for a null pointer and anything to write.
    pub fn set_all(self, values: &[T]) -> Outcome {
        if values.is_empty() {
            return Ok(());
        }
        if self.0.is_null() {
            return Err(null("results"));
        }
        for (index, value) in values.iter().enumerate() {
            // SAFETY: the contract of every function with a result array is that it has room for
            // as many elements as the caller announced, and callers of `set_all` write no more.
            unsafe { self.0.add(index).write_unaligned(*value) };
        }
        Ok(())
    }
}

macro_rules! narrower {
    ($($narrow:ty)*) => { $(
        /// The same place for a narrower result, where an attribute decides the width.
        impl From<Out<u64>> for Out<$narrow> {
            fn from(wide: Out<u64>) -> Self {
                Self(wide.0.cast())
            }
        }
    )* };
}
narrower!(i32 u32 u8);

/// A structure or array that is read.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// Whether it is null.
    #[must_use]
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The value.
    ///
    /// # Errors
    /// `InvalidValue` for a null pointer.
    pub fn get(self) -> Outcome<T> {
        if self.0.is_null() {
            return Err(null("a structure"));
        }
        // SAFETY: not null, hence valid for a read by the invariant of this module.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// `count` values, one behind the other.
    ///
    /// # Errors
    /// `InvalidValue` for a null pointer and a count above zero.
    pub fn all(self, count: usize) -> Outcome<Vec<T>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        if self.0.is_null() {
            return Err(null("an array"));
        }
        // SAFETY: the caller announced `count` elements, and vouches for them by contract.
        Ok((0..count).map(|index| unsafe { self.0.add(index).read_unaligned() }).collect())
    }
}

/// C text that is read.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    /// The text.
    ///
    /// # Errors
    /// `InvalidValue` for a null pointer or text that is not UTF-8.
    pub fn read(self) -> Outcome<String> {
        if self.0.is_null() {
            return Err(null("a name"));
        }
        // SAFETY: not null, hence text that ends in NUL by the function's contract.
        let text = unsafe { CStr::from_ptr(self.0) };
        let text = text.to_str().map_err(|error| failure(Code::InvalidValue, error.to_string()))?;
        Ok(text.to_owned())
    }
}

/// Host memory of a copy, or an image of unknown length.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Bytes(*const c_void);

impl Bytes {
    /// The memory a pointer found inside other memory leads to.
    #[must_use]
    pub fn at(pointer: *const c_void) -> Self {
        Self(pointer)
    }

    /// Its address.
    #[must_use]
    pub fn address(self) -> usize {
        self.0 as usize
    }

    /// The byte at `offset`.
    ///
    /// # Safety
    /// That byte exists: the caller has seen nothing before it that ends the image.
    unsafe fn byte(self, offset: usize) -> u8 {
        // SAFETY: the caller's.
        unsafe { self.0.cast::<u8>().add(offset).read() }
    }

    /// The first `count` bytes of an image.
    ///
    /// # Errors
    /// `InvalidValue` for a null pointer.
    ///
    /// # Safety
    /// The image has that many bytes.
    pub unsafe fn prefix(self, count: usize) -> Outcome<Vec<u8>> {
        if self.0.is_null() {
            return Err(null("an image"));
        }
        // SAFETY: the caller's.
        Ok(unsafe { std::slice::from_raw_parts(self.0.cast::<u8>(), count) }.to_vec())
    }

    /// The bytes up to, not including, the first NUL.
    ///
    /// # Errors
    /// `InvalidValue` for a null pointer, `InvalidImage` when no NUL comes within `limit` bytes.
    ///
    /// # Safety
    /// The bytes up to the first NUL are valid.
    pub unsafe fn until_nul(self, limit: usize) -> Outcome<Vec<u8>> {
        if self.0.is_null() {
            return Err(null("an image"));
        }
        let mut bytes = Vec::new();
        while bytes.len() < limit {
            // SAFETY: no NUL came before this byte, so it is valid by the caller's word.
            match unsafe { self.byte(bytes.len()) } {
                0 => return Ok(bytes),
                byte => bytes.push(byte),
            }
        }
        Err(failure(Code::InvalidImage, format!("no NUL within {limit} bytes of PTX text")))
    }
}

/// `void**`: an array of pointers to kernel parameters, or of launch options.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Pointers(*const *const c_void);

impl Pointers {
    /// None.
    pub const NULL: Self = Self(std::ptr::null());

    /// Whether there is none.
    #[must_use]
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The pointer at `index`.
    ///
    /// # Safety
    /// The array has that element.
    #[must_use]
    pub unsafe fn at(self, index: usize) -> Bytes {
        // SAFETY: the caller's.
        Bytes(unsafe { self.0.add(index).read_unaligned() })
    }
}

/// A text result that belongs to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct StaticText(*const c_char);

impl StaticText {
    /// Points to text that lives as long as the caller may use it.
    #[must_use]
    pub fn of(text: &CStr) -> Self {
        Self(text.as_ptr())
    }

    /// The null pointer.
    pub const NULL: Self = Self(std::ptr::null());
}
