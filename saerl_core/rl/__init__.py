"""A manifest and a policy become a verl job: built, checked, launched, watched, resumed, read and judged.

verl itself stays unmodified. What must run inside its interpreter lies in `verl_side/`; everything else runs here and
talks to the job through files in its run folder.
"""
