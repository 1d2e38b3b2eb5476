"""Pictures of a report as inline SVG: no scripts, no fonts to fetch, colours from the page's style sheet.

Each module draws one kind of picture. Sizes are in SVG user units: a picture is scaled to the width that the page
has for it, so they say how large things are beside each other.
"""
