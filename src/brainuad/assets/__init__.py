"""Files that the package ships; see NOTICE for their licences."""
