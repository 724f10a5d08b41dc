"""Outside teachers. A term draws our vectors towards what they say of the training items, which is computed once,
before the first step, and read from a file afterwards."""

from onepeace.train.teachers.items import SAMPLE_RATE, Teacher, item_reader
from onepeace.train.teachers.named import LIBRARIES, READS, TEACHERS, TeacherOptions, check_teacher, make_teacher
from onepeace.train.teachers.table import TeacherTable, cached_features, file_name

__all__ = [
    "LIBRARIES",
    "READS",
    "SAMPLE_RATE",
    "TEACHERS",
    "Teacher",
    "TeacherOptions",
    "TeacherTable",
    "cached_features",
    "check_teacher",
    "file_name",
    "item_reader",
    "make_teacher",
]
