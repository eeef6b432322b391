"""What a new project is told about its data: a survey, the choices that follow from it, and what a run will take."""
