"""Report pages and pictures of scored scans."""
