-- Reads the document part by part: what one leaves open, its notes and its link addresses are its
-- own. A part is "\30", a line of JSON, and its text; it becomes a Div that has that line, which
-- says its "format" and more, as an attribute. Nothing is loaded on the way, and no raw HTML or
-- TeX gets through.

local MARKDOWN = "markdown-smart-raw_html-raw_tex-raw_attribute-citations-example_lists"
  .. "-yaml_metadata_block-pandoc_title_block"
-- What a notebook's author writes, as JupyterLab has it.
local CELL = "commonmark_x-smart-raw_attribute-implicit_figures-emoji-yaml_metadata_block"
local CITING = MARKDOWN:gsub("%-citations", "+citations")
local HTML = "html+tex_math_single_backslash"

local function read(text, format)
  return pandoc.read(text, format, { columns = 72 }, {}) -- in a sandbox, by the last argument
end

-- The citation that a link to "cite:" holds as text (see render.py).
local function cited(link)
  if link.target ~= "cite:" then return nil end
  local text = pandoc.write(pandoc.Pandoc({ pandoc.Plain(link.content) }), "markdown-smart")
  local first = read(text:gsub("\\([%[%]@])", "%1"), CITING).blocks[1]
  return first and first.content
end

-- A part's document and, of a cell with HTML, the HTML that it was read from. What has a table is
-- read `again` (see render.py): pandoc does not see it where its author has left out tags, as HTML
-- allows. The second time it has the notebook's title if it had it the first time.
local function parsed(text, how)
  if how.again then return read(text, HTML) end
  if how.format == "html" then return read(text, "html") end
  if how.format ~= "cell" then return read(text, MARKDOWN) end
  -- An environment by itself is a formula.
  text = ("\n\n" .. text):gsub("\n\n(\\begin(%b{}).-\\end%2)", "\n\n$$%1$$")
  local doc = read(text, CELL)
  if not text:find("<", 1, true) then return doc end
  local html = pandoc.write(doc, "html", { html_math_method = "mathjax", highlight_method = "none" })
  return read(html, HTML), html
end

function Reader(input)
  local blocks, named = pandoc.List(), {}
  for line, text in tostring(input):gmatch("\30([^\n]*)\n([^\30]*)") do
    local how = pandoc.json.decode(line)
    local ok, doc, html = pcall(parsed, text, how)
    if not ok then doc = pandoc.Pandoc({ pandoc.CodeBlock(text) }) end
    local title = ""
    doc = doc:walk({
      RawBlock = function() return {} end,
      RawInline = function() return {} end,
      Link = cited,
      Header = function(header)
        local name = "nb-" .. (how.page or "")
        if how.page and not named[name] and how.again ~= "" then -- where its links lead
          header.identifier, title = name, name
        end
        named[name] = true
        header.level = header.level + (({ cell = 1, html = 2 })[how.format] or 0)
        return header
      end,
    })
    doc.blocks = doc.blocks:map(function(block)
      return block.t == "Plain" and pandoc.Para(block.content) or block
    end)
    local seen = false
    doc:walk({ Str = function() seen = true end, Image = function() seen = true end })
    if not seen and how.plain then doc.blocks = { pandoc.CodeBlock(how.plain) } end
    if not ok or not html or not html:lower():find("<table", 1, true) then html = nil end
    blocks:insert(pandoc.Div(doc.blocks, { how = line, html = html, title = title }))
  end
  return pandoc.Pandoc(blocks)
end
