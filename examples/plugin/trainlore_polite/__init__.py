"""Methods for Trainlore. Nothing is registered here: Trainlore reads the files beside this one."""
