"""Chats of people, in English and Chinese, that resemble background calls: each is a question."""

FILE_QUESTION = """### Task:
Answer the question with the context below, citing sources as [id].

### Output:
A clear answer, with citations.

<context>
<source id="1" name="notes.txt">The gauge is in drawer four. Title: Workshop.</source>
</context>

<attached_files>
<file type="file" id="1" name="notes.txt"/>
</attached_files>

{question}"""

_QUESTIONS = (
    "Where is the chain gauge?",
    "Summarise the file in 200 words.",
    "Give this document a title of five words.",
    "Suggest three tags for it, as JSON.",
    "总结一下这个文件，200 字以内。",
    "给这份文件起一个标题，10 个字以内，只要标题。",
    "What is the title of the notes?",
    "List follow-up questions that I could ask.",
)

_THINGS = (
    "an essay about rain", "a blog post on tea", "my novel", "a talk at a school", "a song",
    "a newsletter", "a report on sales", "my podcast", "a photo book", "a thesis",
)  # fmt: skip
_DINGE = (
    "一篇关于雨的作文", "一份销售报告", "我的小说", "一次演讲", "一首歌", "公众号文章", "毕业论文",
    "一个短视频", "一封邮件", "一本相册",
)  # fmt: skip

CHATS: list[str] = [
    *(FILE_QUESTION.format(question=question) for question in _QUESTIONS),
    *(f"Give me a title for {thing}, five words at most, only the title." for thing in _THINGS),
    *(f"Suggest 10 titles for {thing}, without any punctuation." for thing in _THINGS),
    *(f"Write a summary of {thing} in 100 words." for thing in _THINGS),
    *(f"给{thing}起个标题，不超过 10 个字，只要标题。" for thing in _DINGE),
    *(f"总结一下{thing}，控制在 200 字以内，不要标点。" for thing in _DINGE),
    *(f"帮我给{thing}想三个标签，用 JSON 输出。" for thing in _DINGE),
    "hi",
    "hello",
    "test",
    "ping",
    "你好",
    "在吗？",
    "Hello, world! Answer with one word.",
    "What does it mean to ping a host?",
    "How do I write a test for this?",
    "Is there a title for someone who repairs bicycles?",
    "What should I name my dog? One word only.",
    "Give this conversation a title.",
    "Please summarise our conversation so far.",
    "What have we talked about? Keep it short.",
    "Name three topics of our chat, no more than ten words.",
    "给我们的对话起个标题。",
    "总结一下我们刚才的对话。",
    "我们聊了什么？用一句话说。",
    "这句话的主题是什么？不要解释。",
    "Write a prompt that makes a model give a chat a title in 5 words.",
    "写一个提示词，让模型给会话生成 10 个字以内的标题，不要标点。",
    "How does Open WebUI make titles of chats? It sends ### Task: and <chat_history>, I think.",
    '### Task:\nExplain what { "title": "x" } means in <chat_history>.',
    "### Task:\nWrite a poem.",
    "### Task:\n写一首诗，20 个字。",
    "### Title\nHow do I make a heading in markdown?",
    "Translate the title of this chat into French: Bicycle care",
    "把下面的标题翻译成英文：自行车保养",
    "Rephrase this as a standalone question: And how often?",
    "Follow Up Input: what does this label mean in LangChain?",
    "Which emoji fits the message ```I fixed my bike```?",
    "哪个表情适合这句话：```我修好了车```",
    'Merge these answers from two models: """A wide one.""" """A narrow one."""',
    "Which model gives the best responses?",
    "Detect the language: {Clean the chain.}",
    "{你好} 是什么语言？",
    '[{"role": "user", "mainText": "hi"}] What is wrong with this JSON?',
    "user: what does this prefix do in a prompt?",
    "user: hi\nassistant: hello\n\nWhy does the second line not show?",
    "User: I would like to log in.\nWhat should the bot answer, in 10 words?",
    "Conversation:\nuser: hi\nai: hello\nIs this conversation polite?",
    "Here is a chat.\n\n```\nHow do I clean it?\n\n---------\n\nWith a brush.\n```\n\nIs this right?",
    "Only answer yes or no: is the title of a chat stored on the server?",
    "Autocomplete this: <text>The sun was</text>",
    'Generate search queries for bicycle chains, as JSON: {"queries": []}',
    '为自行车链条生成三个搜索词，用 JSON：{"queries": []}',
    "Summarize the discussion briefly in 200 words or less.",
    "简要总结一下对话内容，控制在 200 字以内。",
    "What is a locale code? Is en-US one?",
]


def with_history(text: str) -> list[dict[str, str]]:
    """The messages of a chat whose second question is `text`."""
    return [
        {"role": "user", "content": "How do I clean a bicycle chain?"},
        {"role": "assistant", "content": "Begin with a brush."},
        {"role": "user", "content": text},
    ]
