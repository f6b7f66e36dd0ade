//! What the calls of a pickle mean to one reader.

use crate::error::Problem;
use crate::value::{Id, Value, Values};

/// What the calls of a pickle mean to one reader; it describes what they would give and runs nothing.
pub trait Meaning {
    /// An object that a known call gives.
    type Object;

    /// What `function(*args)` gives, as a new value or an old one.
    ///
    /// # Errors
    ///
    /// The reason when the call is refused.
    fn call(
        &mut self,
        values: &mut Values<'_, Self::Object>,
        function: Id,
        args: Id,
    ) -> Result<Id, Problem>;

    /// What an instance of `class` in the manner of protocol 0 gives.
    ///
    /// # Errors
    ///
    /// The reason when it is refused.
    fn instance(&mut self, values: &mut Values<'_, Self::Object>, class: Id)
    -> Result<Id, Problem>;

    /// Sets the state of an object; ignored unless a reader says otherwise.
    ///
    /// # Errors
    ///
    /// The reason when the state is refused.
    fn state(
        &mut self,
        _values: &mut Values<'_, Self::Object>,
        _object: Id,
        _state: Id,
    ) -> Result<(), Problem> {
        Ok(())
    }

    /// What a persistent id stands for: something that lies outside of the pickle. Refused unless a reader knows it.
    ///
    /// # Errors
    ///
    /// The reason when the id is refused.
    fn persistent<'a>(
        &mut self,
        _values: &Values<'a, Self::Object>,
        _id: Id,
    ) -> Result<Value<'a, Self::Object>, Problem> {
        Err("a persistent id, which plain data does not have".into())
    }
}
